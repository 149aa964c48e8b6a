"""Which of the waiting texts run now."""

from collections.abc import Sequence

from rlhf_core.batches import next_batch
from rlhf_core.tokenization import TokenizedText
from worker.scorer.pairs import LoadedPair
from worker.scorer.tickets import Fingerprint, Ticket, fair_order

WINDOW = 8  # batches' worth of a client's tokens from which a batch is chosen


def chosen(
    group: Sequence[Ticket], pair: LoadedPair, *, max_batch_tokens: int
) -> dict[Fingerprint, TokenizedText]:
    """Of fair_order's texts the first, and those that go well with it."""
    order = fair_order(group, window=WINDOW * max_batch_tokens)
    if not order:
        return {}
    places = next_batch(
        [text for _, text in order],
        pair.capacity,
        max_batch_tokens=max_batch_tokens,
        strict=group[0].key.numerics == "strict",
    )
    return dict(order[place] for place in places)
