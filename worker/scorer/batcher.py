"""One queue and a thread that owns the models: texts of all waiting requests are scored in shared batches.

A request is admitted by its estimated tokens before any costly work (queue.py). Then, batch by batch: drop what
nobody waits for any more, let the client whose turn it is choose the pair, gather every waiting text for the same
pair, temperature and numerics, and run those that go well together within the token budget. Equal texts are
scored once.

A second thread tokenises while the first computes (tokenizing.py).
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict

from jobs.errors import DeadlineExceeded, JobError, ScorerUnavailable
from jobs.scoring_wire import ItemError, ScoreReply, ScoreRequest
from rlhf_core.scoring import ScoredText, score_batch
from rlhf_core.tokenization import TokenizedText
from worker.scorer.answers import item_scores, timed_reply
from worker.scorer.choice import chosen
from worker.scorer.failures import failure_of
from worker.scorer.memory import device_is_lost, score_in_halves
from worker.scorer.pairs import LoadedPair, PairCache, PairKey
from worker.scorer.queue import FairQueue
from worker.scorer.residence import Residence
from worker.scorer.rest import Rest, ScorerAsleep
from worker.scorer.stats import Stats, Totals
from worker.scorer.tickets import BatchKey, Fingerprint, Ticket, already_too_late, estimate_tokens, too_late
from worker.scorer.tokenizing import Tokenizing
from worker.scorer.warmup import warmup_batches

NO_MEMORY = ItemError(code="out_of_memory", detail="the scorer's memory is not enough for this item")


class ScorerDraining(ScorerUnavailable):
    """The scorer is shutting down: it answers what it has and takes no more."""


class Batcher:
    """The queue and its threads, which run `run` and `tokenize_ahead`; the rest may be called from any thread."""

    def __init__(
        self,
        pairs: PairCache,
        *,
        max_batch_tokens: int,
        max_queued_tokens: int,
        max_queued_requests: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pairs, self._max_batch_tokens, self._clock = pairs, max_batch_tokens, clock
        self._changed = threading.Condition()
        self._queue = FairQueue(max_tokens=max_queued_tokens, max_requests=max_queued_requests)
        self._totals = Totals()
        self._tokenizing = Tokenizing(pairs, self._queue, self._totals, self._changed)
        self._closed = False
        self.rest = Rest(
            *(pairs, self._changed),
            idle=self._idle,
            closed=lambda: self._closed,
            load=self.preload,
            clock=clock,
        )
        self.residence = Residence(pairs, self._changed, self.rest, load=self.preload)
        self._next_load = clock()  # when another pair may be loaded while those in memory have work

    @property
    def closed(self) -> bool:
        """True once it takes no more requests."""
        return self._closed

    def submit(self, request: ScoreRequest, pair: PairKey, *, timeout_s: float = 60.0) -> Future[ScoreReply]:
        """Queue a request; cancelling the future, or the end of its time, gives it up.

        Raises:
            ScoringRefused: it could never be admitted (`input_too_long`).
            ScorerOverloaded: the queue is full.
            ScorerDraining: the scorer is shutting down.
            ScorerAsleep: it has no models now.
        """
        key, now = BatchKey(pair, request.temperature, request.numerics), self._clock()
        ticket = Ticket(request, key, estimate_tokens(request), submitted=now, deadline=now + timeout_s)
        with self._changed:
            self._drop_unwanted()
            if self._closed:
                raise ScorerDraining("the scorer is shutting down")
            if self.rest.asleep:
                raise ScorerAsleep("the scorer sleeps while a job trains on its GPU")
            self._queue.admit(ticket, tokens_per_s=self._totals.tokens_per_s)
            self._changed.notify_all()
        return ticket.future

    def expire(self, future: Future[ScoreReply]) -> DeadlineExceeded:
        """Give up a request whose time is over; the error says where it went."""
        with self._changed:
            now = self._clock()
            mine = self._queue.remove(lambda ticket: ticket.future is future)
            self._totals.expired_requests += len(mine)
            future.cancel()
        return too_late(mine[0], now) if mine else already_too_late(future)

    def stats(self) -> Stats:
        """The queue now and counters since the start, for /health."""
        with self._changed:
            self._drop_unwanted()
            oldest = min((ticket.submitted for ticket in self._queue), default=None)
            return Stats(
                **asdict(self._totals),
                waiting_requests=len(self._queue),
                queued_tokens=self._queue.tokens,
                oldest_wait_s=0.0 if oldest is None else self._clock() - oldest,
                pairs_loaded=len(self._pairs),
            )

    def preload(self, pair: PairKey) -> None:
        """Load a pair before its first request, and warm it up. Only for the thread that calls `run`."""
        with self.rest.busy():
            loaded = self._pairs.get(pair)
            for texts in warmup_batches(loaded, max_batch_tokens=self._max_batch_tokens):
                self._score_texts(loaded, texts, temperature=1.0, top_k=0)

    def run(self) -> None:
        """Score until closed and the queue is empty. Raises what a GPU did not survive."""
        while True:
            with self._changed:
                while self._idle() and not (self._closed or self.rest.due or self.residence.due):
                    self._changed.wait(self.rest.wait_s)
                idle = self._idle()
            if self.residence.due and not self._closed:
                self.residence.act()
            elif not idle:
                self.step()
            elif self._closed:
                return
            else:
                self.rest.act()

    def tokenize_ahead(self) -> None:
        """Tokenise requests whose pair is in memory, until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tokenizing.due() or self._closed)
                ticket = self._tokenizing.due()
            if self._closed or ticket is None:
                return
            self._tokenize_if_resident(ticket)

    def _tokenize_if_resident(self, ticket: Ticket) -> None:
        """In a frame of its own: one that waits would keep the pair in memory."""
        if pair := self._pairs.find(ticket.key.pair):
            with self._failing([ticket]):
                self._tokenizing.once(ticket, pair)

    def close(self) -> None:
        """Take no more requests; those that wait are still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """Fail all that still waits: there is no more time."""
        self._fail(lambda _: True, ScorerDraining("the scorer has shut down before its turn came"))

    def step(self) -> None:
        """Score one batch of what waits."""
        with self._changed:
            self._drop_unwanted()
            leader = self._queue.leader(self._may_run)
            group = [] if leader is None else self._queue.group(leader)
        if leader is None:
            return
        with self._failing(group):
            pair = self._loaded(leader.key.pair)
            for ticket in group:
                with self._failing([ticket]):
                    self._tokenizing.once(ticket, pair, wait=ticket is leader and not ticket.tokenized)
            self._run_batch(leader, pair)
            for ticket in self._finished(leader.key):
                with self._failing([ticket]):
                    self._answer(ticket, pair)
        with self._changed:
            self._queue.end_turn(leader.client)
            self._changed.notify_all()  # who waits for the queue's end

    def _idle(self) -> bool:
        return not len(self._queue)

    def _may_run(self, key: BatchKey) -> bool:
        """A pair in memory may; another one after those in memory had as much time as the last load took."""
        return key.pair in self._pairs or self._clock() >= self._next_load

    def _loaded(self, key: PairKey) -> LoadedPair:
        started, resident = self._clock(), key in self._pairs
        try:
            return self._pairs.get(key)
        finally:
            if not resident:
                ended = self._clock()
                self._next_load = ended + (ended - started)
                self._totals.load_s += ended - started

    def _run_batch(self, leader: Ticket, pair: LoadedPair) -> None:
        """Score the leader's oldest text and those that go well with it; all tickets that wait for one get it."""
        with self._changed:
            self._drop_unwanted()  # loading and tokenising took their time
            group = [ticket for ticket in self._queue.group(leader) if ticket.tokenized]
        batch = chosen(group, pair, max_batch_tokens=self._max_batch_tokens)
        concerned = [ticket for ticket in group if not ticket.open.keys().isdisjoint(batch)]
        if not batch:
            return
        with self._failing(concerned):
            top_k = max(ticket.request.top_k for ticket in concerned)
            started, began = time.perf_counter(), self._clock()
            for ticket in concerned:
                ticket.computing_since = began
            scores = self._score_texts(
                pair, list(batch.values()), temperature=leader.key.temperature, top_k=top_k
            )
            elapsed = time.perf_counter() - started
            with self._changed:
                lengths = [len(text.ids) for text in batch.values()]
                self._totals.count_batch(lengths, pair.capacity.packed_tokens, elapsed)
                for ticket in concerned:
                    ticket.compute_s, ticket.computing_since = ticket.compute_s + elapsed, None
                for fingerprint, scored in zip(batch, scores, strict=True):
                    self._hand_out(concerned, fingerprint, scored)

    def _score_texts(
        self, pair: LoadedPair, texts: Sequence[TokenizedText], *, temperature: float, top_k: int
    ) -> list[ScoredText | None]:
        def score(part: Sequence[TokenizedText]) -> list[ScoredText]:
            return score_batch(pair.models, part, temperature=temperature, top_k=top_k)

        return score_in_halves(score, texts, on_failure=self._totals.count_out_of_memory)

    def _hand_out(
        self, tickets: Sequence[Ticket], fingerprint: Fingerprint, scored: ScoredText | None
    ) -> None:
        items = [(t, item, text) for t in tickets for item, text in t.close_text(fingerprint)]
        for ticket, item, text in items:
            ticket.answers[item] = NO_MEMORY if scored is None else item_scores(text, scored, ticket.request)
        if scored is not None:
            self._totals.items += len(items)
            self._totals.shared_items += len(items) - 1

    def _finished(self, key: BatchKey) -> list[Ticket]:
        with self._changed:
            return [
                ticket for ticket in self._queue if ticket.key == key and ticket.tokenized and not ticket.open
            ]

    def _answer(self, ticket: Ticket, pair: LoadedPair) -> None:
        spent = ticket.spent(self._clock())
        reply = timed_reply(ticket, pair, spent, self._pairs.resident)
        with self._changed:  # only now: an error above must still find whom it fails
            self._queue.remove(lambda other: other is ticket)
            self._totals.queue_s += spent["queue"]
        if not ticket.future.done() and ticket.future.set_running_or_notify_cancel():
            ticket.future.set_result(reply)

    @contextmanager
    def _failing(self, tickets: Sequence[Ticket]) -> Iterator[None]:
        """An error inside fails these requests and no others, unless the GPU is lost with it."""
        try:
            yield
        except Exception as error:  # the thread's edge: a bad batch must not end the process
            failure = failure_of(error, requests=len(tickets))
            self._fail(lambda ticket: ticket in tickets, failure)
            if device_is_lost():
                raise

    def _drop_unwanted(self) -> None:
        """Take out what nobody waits for: no work is done for it. The lock must be held."""
        gone = self._queue.remove(lambda ticket: ticket.future.cancelled())
        self._totals.abandoned_requests += len(gone)
        now = self._clock()
        self._totals.expired_requests += self._fail(
            lambda ticket: ticket.deadline <= now, lambda ticket: too_late(ticket, now)
        )

    def _fail(
        self, condemned: Callable[[Ticket], bool], failure: JobError | Callable[[Ticket], JobError]
    ) -> int:
        with self._changed:
            tickets = self._queue.remove(condemned)
        for ticket in tickets:
            if ticket.future.set_running_or_notify_cancel():
                ticket.future.set_exception(failure if isinstance(failure, JobError) else failure(ticket))
        return len(tickets)
