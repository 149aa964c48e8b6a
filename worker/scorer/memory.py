"""When memory is not enough: a batch is scored in halves, and a text that does not fit alone is an error."""

import gc
import os
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from jobs.settings import Settings
from rlhf_core.scoring import ScoredText
from rlhf_core.tokenization import TokenizedText
from worker.failures import NO_GPU_MEMORY, NO_HOST_MEMORY

WEIGHTS_SHARE = 0.6  # of this process's share; the rest is for activations and logits
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

Score = Callable[[Sequence[TokenizedText]], Sequence[ScoredText]]


def score_in_halves(
    score: Score, texts: Sequence[TokenizedText], *, on_failure: Callable[[], None]
) -> list[ScoredText | None]:
    """Scores in the order of `texts`, by halves of halves where memory is short; None for one too many."""
    try:
        return list(score(texts))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: until its end the error keeps the failed batch's tensors.
    on_failure()
    release()
    if len(texts) == 1:
        return [None]
    middle = _middle([len(text.ids) for text in texts])
    halves = texts[:middle], texts[middle:]
    return [scored for half in halves for scored in score_in_halves(score, half, on_failure=on_failure)]


def is_out_of_memory(error: BaseException) -> bool:
    """True for what python, numpy, torch, and CUDA raise when an allocation fails."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return bool(NO_GPU_MEMORY.search(str(error)) or NO_HOST_MEMORY.search(str(error)))


def device_is_lost() -> bool:
    """True if the GPU has met an error after which this process can do nothing more with it."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def release() -> None:
    """Give back what is cached and not used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def take_share(settings: Settings) -> int:
    """Keep this process within its share of a GPU's memory; returns the bytes that weights may take."""
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(settings.scorer_memory_share)
        total = torch.cuda.mem_get_info()[1]
    else:
        total = _host_bytes()
    return settings.scorer_weights_bytes or int(WEIGHTS_SHARE * settings.scorer_memory_share * total)


def _host_bytes() -> int:
    """The machine's memory, or the container's if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return total if limit == "max" else min(total, int(limit))


def _middle(lengths: Sequence[int]) -> int:
    """Where to cut so that neither part has much more than half of the tokens, and each has a text."""
    ends = list(accumulate(lengths))
    return 1 + min(range(len(lengths) - 1), key=lambda last: abs(2 * ends[last] - ends[-1]))
