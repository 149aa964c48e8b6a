"""The requests that wait: which are let in, and whose turn it is.

Clients take turns. The client in front leads the next batch: its oldest text goes for certain, and then it goes
behind the others. So a client that begins to wait leads after at most one batch of each client that was waiting
before it (and the batch that runs), however many texts those have; within a client and a batch key it is first
come, first served. In the room that the leader's text leaves, clients share alike by tokens (`fair_order`), but
only as far as their texts go well together (rlhf_core/batches.py).
"""

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator

from jobs.errors import ScorerOverloaded, ScoringRefused
from jobs.settings import CLIENT_SHARE
from worker.scorer.tickets import BatchKey, Ticket

RETRY_AFTER_S, JITTER = (1, 60), 0.2


class FairQueue:
    """Requests by client, and the clients' turns. Not for several threads at once: the batcher holds its lock."""

    def __init__(self, *, max_tokens: int, max_requests: int) -> None:
        self._max_tokens, self._max_requests = max_tokens, max_requests
        self._clients: OrderedDict[str, list[Ticket]] = OrderedDict()  # the next leader comes first
        self._jitter = random.Random()  # noqa: S311  # spreads clients' retries, guards nothing

    def __iter__(self) -> Iterator[Ticket]:
        """All requests, the next leader's first."""
        return (ticket for tickets in self._clients.values() for ticket in tickets)

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return sum(ticket.tokens for ticket in self)

    def admit(self, ticket: Ticket, *, tokens_per_s: float) -> None:
        """Put a request in its client's line.

        Raises:
            ScoringRefused: it alone is over a client's share of the queue (`input_too_long`).
            ScorerOverloaded: there is no room now.
        """
        share = math.floor(CLIENT_SHARE * self._max_tokens)
        self.check_size(ticket.tokens)
        queued, theirs = self.tokens, sum(t.tokens for t in self._clients.get(ticket.client, []))
        full = queued + ticket.tokens > self._max_tokens or len(self) >= self._max_requests
        if full or theirs + ticket.tokens > share:
            raise ScorerOverloaded(self._retry_after_s((queued if full else theirs) / tokens_per_s))
        self._clients.setdefault(ticket.client, []).append(ticket)

    def check_size(self, tokens: int) -> None:
        """Of one request, as estimated and again once it is counted. Raises ScoringRefused."""
        share = math.floor(CLIENT_SHARE * self._max_tokens)
        if tokens > share:
            raise ScoringRefused(
                "input_too_long",
                f"about {tokens} tokens in one request; at most {share} are taken",
                {"limit": share, "actual": tokens},
            )

    def leader(self, may_run: Callable[[BatchKey], bool]) -> Ticket | None:
        """The oldest request of the first client whose oldest may run; of the first client, if none may."""
        fronts = [tickets[0] for tickets in self._clients.values()]
        return next((ticket for ticket in fronts if may_run(ticket.key)), fronts[0] if fronts else None)

    def group(self, leader: Ticket) -> list[Ticket]:
        """All requests that can share the leader's batch, its own client's first."""
        own = self._clients.get(leader.client, [])
        others = [ticket for ticket in self if ticket.client != leader.client]
        return [ticket for ticket in [*own, *others] if ticket.key == leader.key]

    def end_turn(self, client: str) -> None:
        """The client that has led goes behind the others."""
        if client in self._clients:
            self._clients.move_to_end(client)

    def remove(self, unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        """Take requests out; returns them. A client without any loses its turn."""
        removed = [ticket for ticket in self if unwanted(ticket)]
        for ticket in removed:
            line = self._clients[ticket.client]
            line.remove(ticket)
            if not line:
                del self._clients[ticket.client]
        return removed

    def _retry_after_s(self, wait_s: float) -> int:
        """When to come back: the time the queue takes, give or take, for not all shall come back at once."""
        lowest, highest = RETRY_AFTER_S
        spread = self._jitter.uniform(1 - JITTER, 1 + JITTER)
        return min(highest, max(lowest, round(min(highest, max(lowest, wait_s)) * spread)))
