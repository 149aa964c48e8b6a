"""What the rewards say of a step's completions, and what is reported of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.rewards import RewardFunction, WeightedSum, checked_scores
from rlhf_core.update import require_finite


class Judgement(NamedTuple):
    """One score per completion, as the reward gave it."""

    scores: Float[Tensor, " batch"]
    parts: Mapping[str, Float[Tensor, " batch"]]  # of a weighted sum, before their weights


def judge(
    reward: RewardFunction,
    prompts: Sequence[str],
    completions: Sequence[str],
    tokens: Sequence[int],
    *,
    step: int,
) -> Judgement:
    """Ask the reward, and each part of it once.

    Raises:
        RewardError: the reward raised or did not return one number per completion.
        NonFiniteLoss: NaN or infinity in a score.
    """
    if not isinstance(reward, WeightedSum):
        scores = checked_scores(reward, prompts, completions, tokens)
        return Judgement(_finite(scores, "reward", step=step), {})
    parts = reward.parts(prompts, completions, tokens)
    finite = {name: _finite(scores, f"reward {name}", step=step) for name, scores in parts.items()}
    return Judgement(_finite(reward.total(parts), "reward", step=step), finite)


def describe_rewards(judged: Judgement) -> dict[str, float]:
    """Means over the batch; docs/algorithms.md has the units."""
    scores = judged.scores
    metrics = {
        "reward/mean": float(scores.mean()),
        "reward/std": float(scores.std()) if len(scores) > 1 else 0.0,
    }
    return metrics | {f"reward/{name}_mean": float(part.mean()) for name, part in judged.parts.items()}


def _finite(scores: Sequence[float], name: str, *, step: int) -> Float[Tensor, " batch"]:
    tensor = torch.tensor(scores, dtype=torch.float64)
    require_finite(step, name, tensor)
    return tensor
