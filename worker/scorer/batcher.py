"""One queue and one thread that owns the models: texts of all waiting requests are scored in shared batches.

A request is admitted by its estimated tokens before any costly work. Then, batch by batch: take the request in
front, gather every waiting text for the same pair and temperature, run those that go well together within the
token budget. A request that still has texts to score moves behind the others of its kind, so a large one does
not hold up a small one, and pairs are swapped at most once per arrival.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.errors import JobError, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import ItemError, ItemScores, ScoreReply, ScoreRequest
from rlhf_core.batches import fill_batch
from rlhf_core.errors import EmptyInput, InputTooLong, ModelLoadError, RLHFError
from rlhf_core.scoring import ScoredText, score_batch
from rlhf_core.tokenization import TokenizedText, tokenize
from worker.scorer.pairs import LoadedPair, PairCache, PairKey

BYTES_PER_TOKEN = 3  # of the estimate; English text has about 4
FIRST_GUESS_TOKENS_PER_S, SMOOTHING = 200.0, 0.2  # for Retry-After
log = logging.getLogger(__name__)


class BatchKey(NamedTuple):
    """What texts must share to be scored in one batch."""

    pair: PairKey
    temperature: float


@dataclass(eq=False)
class Ticket:
    """A request that waits, and what is known of its items."""

    request: ScoreRequest
    key: BatchKey
    estimated_tokens: int
    future: Future[ScoreReply] = field(default_factory=Future)
    tokenized: bool = False
    texts: dict[int, TokenizedText] = field(default_factory=dict)  # still to be scored, by item
    answers: dict[int, ItemScores | ItemError] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """Counters since the start, and the queue now."""

    waiting_requests: int
    queued_tokens: int
    batches: int
    scored_items: int
    scored_tokens: int
    abandoned_requests: int


class Batcher:
    """The queue and its thread; `run` is the thread's body, everything else may be called from any thread."""

    def __init__(self, pairs: PairCache, *, max_batch_tokens: int, max_queued_tokens: int) -> None:
        self._pairs = pairs
        self._max_batch_tokens, self._max_queued_tokens = max_batch_tokens, max_queued_tokens
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._closed = False
        self._tokens_per_s = FIRST_GUESS_TOKENS_PER_S
        self._batches = self._items = self._tokens = self._abandoned = 0

    def submit(self, request: ScoreRequest, pair: PairKey) -> Future[ScoreReply]:
        """Queue a request; cancelling the future gives it up.

        Raises:
            ScoringRefused: it could never be admitted (`input_too_long`).
            ScorerOverloaded: the queue is full.
            ScorerUnavailable: the scorer is shutting down.
        """
        estimate = estimate_tokens(request)
        if estimate > self._max_queued_tokens:
            raise ScoringRefused(
                "input_too_long",
                f"about {estimate} tokens in one request; at most {self._max_queued_tokens} are taken",
                {"limit": self._max_queued_tokens, "actual": estimate},
            )
        ticket = Ticket(request, BatchKey(pair, request.temperature), estimate)
        with self._changed:
            self._drop_abandoned()
            if self._closed:
                raise ScorerUnavailable("the scorer is shutting down")
            queued = self._queued_tokens()
            if queued + estimate > self._max_queued_tokens:
                raise ScorerOverloaded(min(60, max(1, math.ceil(queued / self._tokens_per_s))))
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket.future

    def stats(self) -> Stats:
        """Counters for /health."""
        with self._changed:
            self._drop_abandoned()
            return Stats(
                waiting_requests=len(self._waiting),
                queued_tokens=self._queued_tokens(),
                batches=self._batches,
                scored_items=self._items,
                scored_tokens=self._tokens,
                abandoned_requests=self._abandoned,
            )

    def preload(self, pair: PairKey) -> None:
        """Load a pair before its first request. Only for the thread that calls `run`."""
        self._pairs.get(pair)

    def run(self) -> None:
        """Score until closed and the queue is empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
            self.step()

    def close(self) -> None:
        """Take no more requests; those that wait are still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def step(self) -> None:
        """Score one batch of what waits."""
        group = self._front_group()
        if not group:
            return
        front, key = group[0], group[0].key
        with self._failing(group):
            pair = self._pairs.get(key.pair)
            for ticket in group:
                with self._failing([ticket]):
                    _tokenize_once(ticket, pair)
            alive = [ticket for ticket in group if not ticket.future.done()]
            batch = self._form_batch(alive, pair.capacity.packed_tokens)
            with self._failing(list(dict.fromkeys(ticket for ticket, _ in batch))):
                self._score(batch, pair)
            for ticket in group:
                if not ticket.texts and not ticket.future.done():
                    self._answer(ticket, pair)
        self._let_others_pass(front)

    def _front_group(self) -> list[Ticket]:
        """The request in front and all that can share its batches."""
        with self._changed:
            self._drop_abandoned()
            return [ticket for ticket in self._waiting if ticket.key == self._waiting[0].key]

    def _form_batch(self, group: list[Ticket], packed_tokens: int) -> list[tuple[Ticket, int]]:
        """The first open item of the group, and those that go well with it."""
        candidates = [(ticket, item) for ticket in group for item in ticket.texts]
        if not candidates:
            return []
        lengths = [len(ticket.texts[item].ids) for ticket, item in candidates]
        chosen = fill_batch(lengths, 0, max_batch_tokens=self._max_batch_tokens, packed_tokens=packed_tokens)
        return [candidates[index] for index in chosen]

    def _score(self, batch: list[tuple[Ticket, int]], pair: LoadedPair) -> None:
        if not batch:
            return
        texts = [ticket.texts[item] for ticket, item in batch]
        started = time.perf_counter()
        scores = score_batch(pair.models, texts, temperature=batch[0][0].key.temperature)
        elapsed = time.perf_counter() - started
        for (ticket, item), scored in zip(batch, scores, strict=True):
            del ticket.texts[item]
            ticket.answers[item] = _item_scores(scored, ticket.request.quantities)
        tokens = sum(len(text.ids) for text in texts)
        with self._changed:
            self._tokens_per_s += SMOOTHING * (tokens / elapsed - self._tokens_per_s)
            self._batches, self._items, self._tokens = (
                self._batches + 1,
                self._items + len(batch),
                self._tokens + tokens,
            )

    def _answer(self, ticket: Ticket, pair: LoadedPair) -> None:
        self._remove([ticket])
        reply = ScoreReply(
            items=[ticket.answers[item] for item in range(len(ticket.request.items))],
            tokenizer_sha256=pair.models.tokenizer_sha256,
            vocab_size=pair.capacity.vocab_size,
            weights_dtype=pair.models.weights_dtype,
        )
        if ticket.future.set_running_or_notify_cancel():
            ticket.future.set_result(reply)

    @contextmanager
    def _failing(self, tickets: list[Ticket]) -> Iterator[None]:
        """An error inside fails these requests and no others."""
        failure: JobError
        try:
            yield
            return
        except ModelLoadError as error:
            log.warning("a model cannot be loaded: %s", error)  # its message holds paths of this machine
            failure = ScoringRefused(
                error.code, "the model cannot be loaded; the scorer's log has the reason"
            )
        except RLHFError as error:
            failure = ScoringRefused(error.code, str(error))
        except Exception:  # the thread's edge: a bad batch must not end the process
            log.exception("a batch of %d requests failed", len(tickets))
            failure = ScorerUnavailable("scoring failed; the scorer's log has the reason")
        self._remove(tickets)
        for ticket in tickets:
            if not ticket.future.done() and ticket.future.set_running_or_notify_cancel():
                ticket.future.set_exception(failure)

    def _remove(self, tickets: list[Ticket]) -> None:
        with self._changed:
            self._waiting = [ticket for ticket in self._waiting if ticket not in tickets]

    def _let_others_pass(self, front: Ticket) -> None:
        """An unfinished request goes behind the others of its kind, and not behind another pair's."""
        with self._changed:
            if front in self._waiting:
                last = max(n for n, ticket in enumerate(self._waiting) if ticket.key == front.key)
                self._waiting.remove(front)
                self._waiting.insert(last, front)

    def _drop_abandoned(self) -> None:
        kept = [ticket for ticket in self._waiting if not ticket.future.cancelled()]
        self._abandoned += len(self._waiting) - len(kept)
        self._waiting = kept

    def _queued_tokens(self) -> int:
        return sum(ticket.estimated_tokens for ticket in self._waiting)


def estimate_tokens(request: ScoreRequest) -> int:
    """Tokens of a request before it is tokenised: its bytes by BYTES_PER_TOKEN, and one per item."""
    size = sum(len(((item.prompt or "") + (item.text or "")).encode()) for item in request.items)
    return math.ceil(size / BYTES_PER_TOKEN) + len(request.items)


def _tokenize_once(ticket: Ticket, pair: LoadedPair) -> None:
    """Tokenise a request's items; those that cannot be scored are answered at once."""
    if ticket.tokenized:
        return
    ticket.tokenized = True
    for index, item in enumerate(ticket.request.items):
        try:
            ticket.texts[index] = tokenize(
                pair.models.tokenizer, item.text or "", item.prompt, context=pair.capacity.context
            )
        except (EmptyInput, InputTooLong) as error:
            ticket.answers[index] = ItemError(code=error.code, detail=str(error))


def _item_scores(scored: ScoredText, quantities: tuple[str, ...]) -> ItemScores:
    return ItemScores(
        token_ids=scored.ids,
        start=scored.start,
        end=scored.end,
        scored=scored.scored,
        quantities={name: values for name, values in scored.quantities.items() if name in quantities},
    )
