"""What held-out completions look like, and how two evaluations on the same prompts differ."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple


class Evaluation(NamedTuple):
    """One completion per held-out prompt, with its score, its length in tokens and what the gold reward says."""

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    gold: tuple[float, ...] = ()  # empty without a gold reward


def summarise(evaluation: Evaluation) -> dict[str, float]:
    """Mean score with its standard error over prompts, mean length, and how repetitive the text is."""
    mean, se = mean_and_se(evaluation.scores)
    summary = {
        "reward_mean": mean,
        "reward_se": se,
        "length_mean": mean_and_se(evaluation.lengths)[0],
        "repeated_bigrams": mean_and_se([repeated_bigrams(text) for text in evaluation.completions])[0],
        "n": float(len(evaluation.scores)),
    }
    if evaluation.gold:
        summary["gold_mean"], summary["gold_se"] = mean_and_se(evaluation.gold)
    return summary


def paired_difference(
    before: Evaluation, after: Evaluation, *, of: Literal["scores", "gold"] = "scores"
) -> dict[str, float]:
    """Mean of after − before over the same prompts, with the standard error of that mean."""
    if before.prompts != after.prompts:
        raise ValueError("a paired difference needs the same prompts")
    mean, se = mean_and_se([b - a for a, b in zip(getattr(before, of), getattr(after, of), strict=True)])
    return {"mean": mean, "se": se, "n": float(len(before.scores))}


def repeated_bigrams(text: str) -> float:
    """Share of a text's word pairs that occurred before in it: 0 for fresh text, near 1 for a loop."""
    words = text.lower().split()
    pairs = list(pairwise(words))
    return 1.0 - len(set(pairs)) / len(pairs) if pairs else 0.0


def mean_and_se(values: Sequence[int | float]) -> tuple[float, float]:
    """Mean, and its standard error sd/√n with n − 1 degrees of freedom (0 for a single value)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
