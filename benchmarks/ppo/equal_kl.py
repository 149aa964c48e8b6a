"""Reward at equal KL: two runs of one seed, each a curve of (exact sequence KL, reward) from its start on."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """A policy rescored: means over fresh completions."""

    kl: float
    reward: float


class Difference(NamedTuple):
    """Ours minus theirs, over pairs of runs."""

    mean: float
    se: float | None  # None for one pair
    pairs: int


def reward_at(curve: Sequence[Point], kl: float) -> float:
    """Where the run first has this KL, on the straight line between two neighbours. Raises if it never has."""
    before = curve[0]
    for point in curve:
        if point.kl >= kl:
            share = (kl - before.kl) / (point.kl - before.kl) if point.kl > before.kl else 1.0
            return before.reward + share * (point.reward - before.reward)
        before = point
    raise ValueError(f"the run's KL is never {kl}")


def common_kl(ours: Sequence[Point], theirs: Sequence[Point]) -> float:
    """KL*, the smaller of the two runs' largest."""
    return min(max(point.kl for point in run) for run in (ours, theirs))


def paired(pairs: Sequence[tuple[Sequence[Point], Sequence[Point]]]) -> Difference:
    """Mean over the seeds of the difference in reward at KL*, and its standard error."""
    found = [
        reward_at(ours, at) - reward_at(theirs, at)
        for ours, theirs in pairs
        for at in [common_kl(ours, theirs)]
    ]
    se = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return Difference(statistics.fmean(found), se, len(found))
