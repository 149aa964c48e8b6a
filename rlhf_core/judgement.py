"""What the rewards say of a step's completions, and what is reported of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.errors import RewardError
from rlhf_core.rewards import RewardFunction, WeightedSum, checked_scores
from rlhf_core.statistics import ratio_estimate
from rlhf_core.update import require_finite


class Judgement(NamedTuple):
    """One score per completion, as the reward gave it."""

    scores: Float[Tensor, " batch"]
    parts: Mapping[str, Float[Tensor, " batch"]]  # of a weighted sum, before their weights
    gold: Float[Tensor, " batch"] | None = None  # of the reward that is only watched


class Judges(NamedTuple):
    """The reward that trains, and the one that is only watched."""

    reward: RewardFunction
    gold: RewardFunction | None = None


def judge(
    judges: Judges,
    prompts: Sequence[str],
    completions: Sequence[str],
    tokens: Sequence[int],
    *,
    step: int,
    during: str = "",
) -> Judgement:
    """Ask the reward, each part of it once, and the gold reward; `during` ends the name of what is not finite.

    Raises:
        RewardError: one of them raised or did not return one number per completion.
        NonFiniteLoss: NaN or infinity in a score.
    """
    reward, texts = judges.reward, (prompts, completions, tokens)

    def finite(scores: Sequence[float], name: str) -> Float[Tensor, " batch"]:
        tensor = torch.tensor(scores, dtype=torch.float64)
        require_finite(step, name + during, tensor)
        return tensor

    parts = reward.parts(*texts) if isinstance(reward, WeightedSum) else {}
    columns = {name: finite(scores, f"reward {name}") for name, scores in parts.items()}
    scores = reward.total(parts) if isinstance(reward, WeightedSum) else checked_scores(reward, *texts)
    total = finite(scores, "reward")
    if judges.gold is None:
        return Judgement(total, columns)
    try:
        gold = checked_scores(judges.gold, *texts)
    except RewardError as error:
        raise RewardError(f"gold reward: {error}") from error
    return Judgement(total, columns, finite(gold, "gold reward"))


def describe_rewards(judged: Judgement, prompts: Sequence[str]) -> dict[str, float]:
    """Means over the batch (docs/algorithms.md); completions of one prompt are one cluster of `gold_se`."""
    scores = judged.scores
    metrics = {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std()) if len(scores) > 1 else 0.0,
    }
    metrics |= {f"reward/{name}_mean": float(part.mean()) for name, part in judged.parts.items()}
    if judged.gold is None:
        return metrics
    gold = ratio_estimate(judged.gold.numpy(), np.ones(len(prompts)), prompts)
    metrics["reward/gold_mean"] = gold.mean
    return metrics if gold.se is None else metrics | {"reward/gold_se": gold.se}
