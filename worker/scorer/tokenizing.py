"""Requests become token ids, once each, on whichever of the batcher's threads comes to it first.

One thread does it ahead, for pairs in memory, while the other computes; what is left is tokenised by that one.
It takes about 12 µs a token: nothing beside a model on a CPU, but not beside one on a GPU.
"""

import threading
import time

from jobs.scoring_wire import ItemError
from rlhf_core.scoring import refuse_mismatch
from worker.scorer.answers import tokenized
from worker.scorer.pairs import LoadedPair, PairCache
from worker.scorer.queue import FairQueue
from worker.scorer.stats import Totals
from worker.scorer.tickets import Ticket


class Tokenizing:
    """What of the queue is to be tokenised. `changed` is the batcher's lock."""

    def __init__(
        self, pairs: PairCache, queue: FairQueue, totals: Totals, changed: threading.Condition
    ) -> None:
        self._pairs, self._queue, self._totals, self._changed = pairs, queue, totals, changed
        self._busy = threading.Lock()

    def due(self) -> Ticket | None:
        """The first request that waits for it and whose pair is in memory. The batcher's lock must be held."""
        waiting = (ticket for ticket in self._queue if not ticket.tokenized)
        return next((ticket for ticket in waiting if ticket.key.pair in self._pairs), None)

    def once(self, ticket: Ticket, pair: LoadedPair, *, wait: bool = True) -> None:
        """Tokenise a request's items; those that cannot be scored are answered at once.

        Without `wait` not while the other thread tokenises: what is not ready goes with a later batch.
        Raises ScoringRefused (`input_too_long`): it is more than could ever be admitted. TokenizerMismatch: the
        heads differ in size, and the request does not ask for their intersection.
        """
        refuse_mismatch(pair.models, ticket.request.vocab_mismatch)
        if not self._busy.acquire(blocking=wait):
            return
        try:
            if ticket.tokenized:
                return
            started = time.perf_counter()
            for index, item in enumerate(ticket.request.items):
                found = tokenized(pair, item)
                if isinstance(found, ItemError):
                    ticket.answers[index] = found
                else:
                    ticket.add_text(index, found)
            ticket.tokenize_s = time.perf_counter() - started
            self._queue.check_size(ticket.all_tokens)
            with self._changed:
                ticket.tokenized = True
                ticket.tokens = sum(len(text.ids) for text in ticket.open.values())
                self._totals.tokenize_s += ticket.tokenize_s
        finally:
            self._busy.release()
