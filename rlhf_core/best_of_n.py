"""The free baseline of a run: what the best of n completions of the reference scores, and how far from it that is.

From n scored completions of each prompt, for all k ≤ n at once. numpy in float64, without torch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_core.statistics import Array, Estimate, ratio_estimate


class BestOf(NamedTuple):
    """The completion with the highest reward out of n, on average over prompts; errors are clustered by prompt."""

    n: int
    kl_bound: float  # nats per sequence: no more than this from the reference
    reward: float
    reward_se: float | None  # None for a single prompt
    gold: float | None = None  # of the completion that the reward takes for the best
    gold_se: float | None = None


def best_of_n_kl(n: int) -> float:
    """KL(best of n ‖ reference) = ln n − (n−1)/n in nats per sequence; it is less where rewards are equal."""
    return math.log(n) - (n - 1) / n


def best_of_n(scores: Array, gold: Array | None, prompts: Sequence[str]) -> tuple[BestOf, ...]:
    """Estimates for k = 1, 2, 4, … and n, each the mean over all sets of k of the n completions of a prompt.

    Args:
        scores: what the reward says of n completions (columns) of each prompt (rows).
        gold: what the gold reward says of them.
        prompts: one per row; equal prompts are one cluster.
    """
    count = scores.shape[1]
    sizes = [2**power for power in range(count.bit_length()) if 2**power < count] + [count]
    order = np.argsort(scores, axis=1)
    shared = (
        None if gold is None else np.stack([shared_by_ties(*row) for row in zip(scores, gold, strict=True)])
    )

    def mean(values: Array, k: int) -> Estimate:
        best = np.take_along_axis(values, order, axis=1) @ chance_to_be_best(count, k)
        return ratio_estimate(best, np.ones(len(prompts)), prompts)

    found = []
    for k in sizes:
        reward = mean(scores, k)
        found.append(BestOf(k, best_of_n_kl(k), reward.mean, reward.se))
        if shared is not None:
            also = mean(shared, k)
            found[-1] = found[-1]._replace(gold=also.mean, gold_se=also.se)
    return tuple(found)


def chance_to_be_best(n: int, k: int) -> Array:
    """Of the i-th lowest of n, to be the highest of k of them: C(i−1, k−1) / C(n, k), i from 1."""
    return np.array([math.comb(i, k - 1) / math.comb(n, k) for i in range(n)])


def shared_by_ties(scores: Array, gold: Array) -> Array:
    """The gold of each completion, or the mean over those of its score: any of them may be taken for the best."""
    _, group = np.unique(scores, return_inverse=True)
    return (np.bincount(group, gold) / np.bincount(group))[group]
