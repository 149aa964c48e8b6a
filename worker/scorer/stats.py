"""What the scorer has done since its start, and what waits now."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

FIRST_GUESS_TOKENS_PER_S, SMOOTHING = 200.0, 0.2  # for Retry-After


@dataclass
class Totals:
    """Counters since the start, seconds by what they were spent on, and the speed of late."""

    batches: int = 0
    items: int = 0  # answered with a score
    tokens: int = 0  # scored
    padded_tokens: int = 0  # rows times the longest; equal to `tokens` where texts are packed
    shared_items: int = 0  # answered by another item's score
    out_of_memory: int = 0  # batches that had to be halved, or texts that do not fit alone
    abandoned_requests: int = 0
    expired_requests: int = 0
    queue_s: float = 0.0  # summed over requests; the others are the thread's own time
    load_s: float = 0.0
    tokenize_s: float = 0.0
    compute_s: float = 0.0
    tokens_per_s: float = FIRST_GUESS_TOKENS_PER_S

    def count_batch(self, lengths: Sequence[int], packed_tokens: int, elapsed_s: float) -> None:
        """Count a batch that has run; `packed_tokens` as in rlhf_core.scoring.Capacity."""
        tokens = sum(lengths)
        self.batches += 1
        self.tokens += tokens
        self.padded_tokens += tokens if packed_tokens else max(lengths) * len(lengths)
        self.compute_s += elapsed_s
        self.tokens_per_s += SMOOTHING * (tokens / elapsed_s - self.tokens_per_s)

    def count_out_of_memory(self) -> None:
        """Count a batch for which memory was not enough."""
        self.out_of_memory += 1


@dataclass(kw_only=True)
class Stats(Totals):
    """The totals and the queue now."""

    waiting_requests: int
    queued_tokens: int
    oldest_wait_s: float
    pairs_loaded: int

    def document(self) -> dict[str, int | float]:
        """As values for JSON."""
        padding = 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0
        return asdict(self) | {"padding_share": padding}
