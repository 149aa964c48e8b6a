"""A request that waits: what is still open of it, and what is known."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from jobs.errors import DeadlineExceeded
from jobs.scoring_wire import ItemError, ItemScores, ScoreItem, ScoreReply, ScoreRequest
from rlhf_core.tokenization import TokenizedText
from worker.scorer.pairs import PairKey

BYTES_PER_TOKEN = 3  # of the estimate; English text has about 4
TOKENS_PER_TURN = 4  # what a chat template puts around a message

Fingerprint = tuple[bytes, int]  # token ids and the first that is scored: all that an answer depends on


class BatchKey(NamedTuple):
    """What texts must share to be scored in one batch."""

    pair: PairKey
    temperature: float
    numerics: str


@dataclass(eq=False)
class Ticket:
    """One request, from its admission to its answer. Changed by the batcher's threads alone."""

    request: ScoreRequest
    key: BatchKey
    tokens: int  # estimated until it is tokenised, then of the texts that are still open
    submitted: float
    deadline: float
    future: Future[ScoreReply] = field(default_factory=Future)
    tokenized: bool = False
    open: dict[Fingerprint, TokenizedText] = field(
        default_factory=dict
    )  # still to be scored, in the items' order
    items: dict[Fingerprint, list[tuple[int, TokenizedText]]] = field(
        default_factory=dict
    )  # all that are the same
    answers: dict[int, ItemScores | ItemError] = field(default_factory=dict)
    tokenize_s: float = 0.0
    compute_s: float = 0.0
    computing_since: float | None = None  # while a batch runs that has texts of it

    def spent(self, now: float) -> dict[str, float]:
        """The seconds since its submission, by what they went to."""
        running = 0.0 if self.computing_since is None else now - self.computing_since
        compute = self.compute_s + running
        queue = max(0.0, now - self.submitted - self.tokenize_s - compute)
        return {"queue": queue, "tokenize": self.tokenize_s, "compute": compute}

    @property
    def client(self) -> str:
        """Whose turn it takes."""
        return self.request.client

    @property
    def all_tokens(self) -> int:
        """Of a request that is tokenised: equal items count each."""
        return sum(len(text.ids) for same in self.items.values() for _, text in same)

    def add_text(self, item: int, text: TokenizedText) -> None:
        """Open an item; one with the same tokens as another is scored with it."""
        fingerprint = (text.ids.tobytes(), text.first_scored)
        self.open.setdefault(fingerprint, text)
        self.items.setdefault(fingerprint, []).append((item, text))

    def close_text(self, fingerprint: Fingerprint) -> list[tuple[int, TokenizedText]]:
        """The items that a score answers, which are then no longer open."""
        text = self.open.pop(fingerprint, None)
        if text is None:
            return []
        self.tokens -= len(text.ids)
        return self.items[fingerprint]


def estimate_tokens(request: ScoreRequest) -> int:
    """Tokens of a request before it is tokenised: ids as they are, else bytes by BYTES_PER_TOKEN and one each."""
    return sum(_estimate(item) for item in request.items)


def _estimate(item: ScoreItem) -> int:
    if item.token_ids is not None:
        return len(item.token_ids)
    if item.messages is not None:
        size = sum(len((message.role + message.content).encode()) for message in item.messages)
        return math.ceil(size / BYTES_PER_TOKEN) + TOKENS_PER_TURN * len(item.messages) + 1
    return math.ceil(len(((item.prompt or "") + (item.text or "")).encode()) / BYTES_PER_TOKEN) + 1


def fair_order(tickets: Sequence[Ticket], *, window: int) -> list[tuple[Fingerprint, TokenizedText]]:
    """Open texts, each once, so that every beginning of the list gives each client about as many tokens.

    A text's place is by the tokens of its client's earlier ones; ties keep the order of `tickets`, in which a
    client's requests are by arrival. No client puts in more than `window` tokens and one text.
    """
    placed: list[tuple[int, Fingerprint, TokenizedText]] = []
    before: dict[str, int] = {}
    seen: set[Fingerprint] = set()
    for ticket in tickets:
        for fingerprint, text in ticket.open.items():
            earlier = before.get(ticket.client, 0)
            if earlier >= window:
                break
            if fingerprint not in seen:
                seen.add(fingerprint)
                placed.append((earlier, fingerprint, text))
                before[ticket.client] = earlier + len(text.ids)
    placed.sort(key=lambda entry: entry[0])
    return [(fingerprint, text) for _, fingerprint, text in placed]


def too_late(ticket: Ticket, now: float) -> DeadlineExceeded:
    """The error of a request whose time is over: where it went."""
    return DeadlineExceeded("not scored in time", ticket.spent(now))


def already_too_late(future: Future[ScoreReply]) -> DeadlineExceeded:
    """The same of a request that waits no more: what it was told, if that was it."""
    error = future.exception() if future.done() and not future.cancelled() else None
    return error if isinstance(error, DeadlineExceeded) else DeadlineExceeded("not scored in time")
