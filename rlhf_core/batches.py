"""Which texts are run together: those that share a prompt, those that fill a row, or those alike in length."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf_core.tokenization import TokenizedText

PADDING_WASTE = 1.25  # padded over real tokens; on a CPU more padding costs more than a smaller batch
SHARED_TOKENS = 64  # fewer that are saved do not pay for a pass of their own
COPIES = 4  # tokens of a shared prompt's copies in the attention cache, over those of a batch


class Capacity(NamedTuple):
    """The longest text that both models take, in tokens, their vocabulary, and how texts may be batched."""

    context: int
    vocab_size: int
    packed_tokens: int = 0  # most tokens of texts packed into one row; 0: they must be padded
    reuses_prefixes: bool = False


def in_batches(
    texts: Sequence[TokenizedText], capacity: Capacity, *, max_batch_tokens: int, strict: bool = False
) -> Iterator[list[int]]:
    """Batches of indices, longest text first, until each text has been in one."""
    waiting = sorted(range(len(texts)), key=lambda index: -len(texts[index].ids))
    while waiting:
        left = [texts[index] for index in waiting]
        places = next_batch(left, capacity, max_batch_tokens=max_batch_tokens, strict=strict)
        yield [waiting[place] for place in places]
        taken = set(places)
        waiting = [index for place, index in enumerate(waiting) if place not in taken]


def next_batch(
    texts: Sequence[TokenizedText], capacity: Capacity, *, max_batch_tokens: int, strict: bool = False
) -> list[int]:
    """Indices of texts to run together, the first text among them; `strict`: it alone."""
    if strict:
        return [0]
    if capacity.reuses_prefixes:
        alike = [n for n, text in enumerate(texts) if _same_prompt(text, texts[0])]
        alike = _within_budget(texts, alike, max_batch_tokens)
        if shared_prefix([texts[n] for n in alike]):
            return alike
    lengths = [len(text.ids) for text in texts]
    return fill_batch(lengths, max_batch_tokens=max_batch_tokens, packed_tokens=capacity.packed_tokens)


def shared_prefix(texts: Sequence[TokenizedText]) -> int:
    """Tokens of the prompt that all texts share, if computing it once pays; else 0."""
    first = texts[0]
    if (len(texts) - 1) * first.first_scored < SHARED_TOKENS:
        return 0
    return first.first_scored if all(_same_prompt(text, first) for text in texts[1:]) else 0


def _same_prompt(text: TokenizedText, other: TokenizedText) -> bool:
    prompt = other.ids[: other.first_scored]
    return text.first_scored == other.first_scored and bool((text.ids[: len(prompt)] == prompt).all())


def _within_budget(texts: Sequence[TokenizedText], alike: list[int], max_batch_tokens: int) -> list[int]:
    """The first of them, and the others nearest to it in length while prompt and padded completions fit."""
    prompt, first = texts[alike[0]].first_scored, len(texts[alike[0]].ids)
    batch: list[int] = []
    longest = 0
    for index in sorted(alike, key=lambda index: (index != alike[0], abs(len(texts[index].ids) - first))):
        wider = max(longest, len(texts[index].ids) - prompt)
        rows = len(batch) + 1
        fits = prompt + rows * wider <= max_batch_tokens and rows * prompt <= COPIES * max_batch_tokens
        if fits or not batch:
            batch.append(index)
            longest = wider
    return batch


def fill_batch(lengths: Sequence[int], *, max_batch_tokens: int, packed_tokens: int = 0) -> list[int]:
    """Indices of texts to run together: the first, which always goes, and others.

    Packed (`packed_tokens` > 0): those of its own length if they are enough, for they need no packing; else in
    their order whatever fits `packed_tokens` and `max_batch_tokens`. Padded: those nearest to the first in length,
    at most `max_batch_tokens` padded tokens and at most PADDING_WASTE times the real ones.
    """
    first = lengths[0]
    if packed_tokens:
        alike = [index for index, length in enumerate(lengths) if length == first]
        if len(alike) * first >= packed_tokens:
            return alike[: max(1, max_batch_tokens // first)]
        room, packed = min(packed_tokens, max_batch_tokens) - first, [0]
        for index, length in enumerate(lengths[1:], start=1):
            if length <= room:
                packed.append(index)
                room -= length
        return packed
    batch, longest, real = [0], first, first
    for index in sorted(range(1, len(lengths)), key=lambda index: abs(lengths[index] - first)):
        padded = max(longest, lengths[index]) * (len(batch) + 1)
        if padded <= max_batch_tokens and padded <= PADDING_WASTE * (real + lengths[index]):
            batch.append(index)
            longest, real = max(longest, lengths[index]), real + lengths[index]
    return batch
