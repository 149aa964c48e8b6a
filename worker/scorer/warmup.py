"""One pass through every path that a batch can take, so that no client pays for what happens only once."""

import numpy as np

from rlhf_core.tokenization import TokenizedText
from worker.scorer.pairs import LoadedPair

TOKENS = 256  # of the long text: threads, kernels and allocator are then as in a full batch


def warmup_batches(pair: LoadedPair, *, max_batch_tokens: int) -> list[list[TokenizedText]]:
    """A text alone, texts of one length, of several (packed or padded), and texts that share a prompt."""
    longest = min(TOKENS, pair.capacity.context, max_batch_tokens)
    long, short = _text(longest), _text(max(2, longest // 4))
    alike = [short] * max(1, min(max_batch_tokens, TOKENS) // len(short.ids))
    return [[long], alike, [long, short], [_text(longest, prompt=longest // 2)] * 3]


def _text(tokens: int, *, prompt: int = 1) -> TokenizedText:
    ids = np.zeros(tokens, dtype=np.int32)
    return TokenizedText(ids, start=ids, end=ids, first_scored=prompt)
