"""From what a reward says to what the policy is trained on: penalty, whitening, scale, clip, in this order.

All of it precedes the KL penalty, so each redefines β (docs/algorithms.md). Nothing is carried from step to step.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.config.scores import ScoresConfig
from rlhf_core.masking import masked_whiten


class Shaped(NamedTuple):
    """One score per completion, in the units that β has, and what whitening and clipping did."""

    scores: Float[Tensor, " batch"]
    std: Float[Tensor, ""]  # what whitening divided by; 1 without
    clipped: Float[Tensor, ""]  # share of the scores that the clip moved


def shape_scores(
    scores: Float[Tensor, " batch"],
    ended: Bool[Tensor, " batch"],
    *,
    missing_eos_penalty: float,
    whiten: bool,
    scale: float,
    clip: float | None,
) -> Shaped:
    """clip(scale · (s − μ)/σ) of s = score − penalty where the response has not ended by itself.

    μ and the Bessel-corrected σ are those of the batch; without whitening 0 and 1.
    """
    shaped = torch.where(ended, scores, scores - missing_eos_penalty)
    std = torch.ones((), dtype=scores.dtype)
    if whiten:
        shaped, std = masked_whiten(shaped, torch.ones_like(ended))
    shaped = shaped * scale
    if clip is None:
        return Shaped(shaped, std, torch.zeros((), dtype=scores.dtype))
    return Shaped(shaped.clamp(-clip, clip), std, (shaped.abs() > clip).to(scores.dtype).mean())


def describe_shaping(shaped: Shaped, config: ScoresConfig) -> dict[str, float]:
    """What the shaping did; nothing where none is asked for."""
    if config == ScoresConfig():
        return {}
    metrics = {
        "reward/shaped_mean": float(shaped.scores.mean()),
        "reward/shaped_std": float(shaped.scores.std()) if len(shaped.scores) > 1 else 0.0,
    }
    if config.whiten:
        metrics["reward/whitening_std"] = float(shaped.std)
    if config.clip is not None:
        metrics["reward/clip_fraction"] = float(shaped.clipped)
    return metrics
