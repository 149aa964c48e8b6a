"""Sampling from the likely tokens only, which is not sampling from the policy (docs/algorithms.md)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.config.ppo import RolloutConfig


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Which tokens may be sampled; None does not restrict them."""

    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @classmethod
    def of(cls, config: RolloutConfig) -> "Truncation | None":
        """None if the whole vocabulary may be sampled."""
        return cls(top_k=config.top_k, top_p=config.top_p, min_p=config.min_p) if config.truncates else None


def truncate(logits: Float[Tensor, "batch vocab"], options: Truncation) -> Float[Tensor, "batch vocab"]:
    """−∞ for the tokens that may not be sampled; `logits` are divided by the temperature already.

    In this order, each on what the one before has left: the `top_k` most likely tokens; the fewest whose
    probabilities sum to `top_p` or more (Holtzman et al. 2020); those of at least `min_p` times the probability
    of the most likely one (Nguyen et al. 2024). The most likely token always stays; the first of equal ones counts
    as the more likely.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    kept = torch.ones_like(ordered, dtype=torch.bool)
    if options.top_k is not None:
        kept[:, options.top_k :] = False
    if options.top_p is not None:
        probabilities = ordered.masked_fill(~kept, -torch.inf).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        kept &= before < options.top_p
    if options.min_p is not None:
        kept &= (ordered - ordered[:, :1]).exp() >= options.min_p
    kept[:, 0] = True
    allowed: Bool[Tensor, "batch vocab"] = torch.zeros_like(kept).scatter(1, order, kept)
    return logits.masked_fill(~allowed, -torch.inf)
