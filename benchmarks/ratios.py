"""Ratios of what contenders took in the same round, and how they are printed."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """Median over the rounds, and quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> "Ratio":
        """Of two contenders' times, round by round."""
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        low, _, high = (
            statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        )
        return cls(statistics.median(ratios), low, high, len(ratios))


def spread(ratio: Ratio) -> str:
    """Median and quartiles for a table."""
    return f"{ratio.median:7.3f} [{ratio.low:.3f} … {ratio.high:.3f}]"
