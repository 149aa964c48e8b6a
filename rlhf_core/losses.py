"""PPO's losses (Schulman et al. 2017) and the KL loss, over real tokens.

Arguments hold real tokens only, as `x[mask]` selects them, so that nothing at a masked place reaches a value or
a gradient. Each loss is a sum over the tokens of a micro-batch divided by `token_count`, the number of tokens of
the whole minibatch: losses and rates of micro-batches add up to the minibatch's, and how it was split changes no
gradient.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.kl import k1, k2, k3


class PolicyLoss(NamedTuple):
    """The loss to minimise, and how far the update has gone from the rollout policy (detached)."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]  # share of tokens whose gradient the clip has cut off; adds up
    approx_kl: Float[Tensor, ""]  # mean of (r − 1) − ln r: KL(old ‖ new) in nats per token (k3); adds up
    ratio_max: Float[Tensor, ""]  # of micro-batches: take the maximum


class ValueLoss(NamedTuple):
    """The loss to minimise, and how often the clip held the value head back (detached)."""

    loss: Float[Tensor, ""]
    clip_fraction: Float[Tensor, ""]  # share of tokens whose clipped error is the larger one; adds up


def policy_loss(
    logp: Float[Tensor, " tokens"],
    old_logp: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    *,
    clip_range: float,
    token_count: int,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """max(−A r, −A clip(r, 1 ± ε)), r = exp(logp − old_logp).

    `dual_clip` = c > 1 bounds the loss of tokens with A < 0 by −A c (Ye et al. 2020).
    """
    log_ratio = logp - old_logp
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss, cut_off = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is not None:
        at_most = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
        loss, cut_off = torch.minimum(loss, at_most), cut_off | (loss > at_most)
    drift = (torch.expm1(log_ratio) - log_ratio).detach()
    return PolicyLoss(
        loss=loss.sum() / token_count,
        clip_fraction=cut_off.sum(dtype=logp.dtype) / token_count,
        approx_kl=drift.sum() / token_count,
        ratio_max=ratio.detach().max(),
    )


def value_loss(
    values: Float[Tensor, " tokens"],
    old_values: Float[Tensor, " tokens"],
    returns: Float[Tensor, " tokens"],
    *,
    clip_range: float | None,
    token_count: int,
) -> ValueLoss:
    """½ max((V − R)², (clip(V, V_old ± ε) − R)²); without a clip range ½(V − R)²."""
    unclipped = clipped = (values - returns).square()
    if clip_range is not None:
        near_old = values.clamp(old_values - clip_range, old_values + clip_range)
        clipped = (near_old - returns).square()
    return ValueLoss(
        loss=torch.maximum(unclipped, clipped).sum() / 2 / token_count,
        clip_fraction=(clipped > unclipped).sum(dtype=values.dtype) / token_count,
    )


def k2_loss(
    logp: Float[Tensor, " tokens"],
    old_logp: Float[Tensor, " tokens"],
    ref_logp: Float[Tensor, " tokens"],
    *,
    token_count: int,
) -> Float[Tensor, ""]:
    """stopgrad(r) k2, r = exp(logp − old_logp): the mean of its gradient is that of per-token KL(π ‖ ref).

    Nats per token; multiply by `beta_in_loss`. Prefixes are taken as given: what a token does to the KL of
    later ones is left out, unlike with `k1` in the reward.
    """
    ratio = (logp - old_logp).detach().exp()
    return (ratio * k2(logp, ref_logp)).sum() / token_count


def k3_loss(
    logp: Float[Tensor, " tokens"],
    old_logp: Float[Tensor, " tokens"],
    ref_logp: Float[Tensor, " tokens"],
    *,
    token_count: int,
) -> Float[Tensor, ""]:
    """r k3, r = exp(logp − old_logp): the gradient of `k2_loss`, token by token.

    The value is unbiased for KL(π ‖ ref). The gradient r d is given and not derived: where the reference is far
    more likely than π, k3 and its derivative overflow before they cancel. There the value is taken from
    r k3 = exp(ref_logp − old_logp) + r (d − 1).
    """
    with torch.no_grad():
        ratio, d = (logp - old_logp).exp(), k1(logp, ref_logp)
        far = (ref_logp - old_logp).exp() + ratio * (d - 1)
        value = torch.where(d < -1, far, ratio * k3(logp, ref_logp))
    return (value + ratio * d * (logp - logp.detach())).sum() / token_count


def ratio_k1_loss(
    logp: Float[Tensor, " tokens"],
    old_logp: Float[Tensor, " tokens"],
    ref_logp: Float[Tensor, " tokens"],
    *,
    token_count: int,
) -> Float[Tensor, ""]:
    """r k1, r = exp(logp − old_logp): the mean gradient of `k2_loss`, with the noise of Σ ∇r, whose mean is 0.

    Value and gradient are unbiased for KL(π ‖ ref) and its gradient. Without the ratio the gradient would be 0
    in the mean.
    """
    return ((logp - old_logp).exp() * k1(logp, ref_logp)).sum() / token_count


def beta_in_loss(beta: float, advantage_std: float) -> float:
    """β_L = β / σ_A: β beside whitened advantages, which were divided by σ_A (1 if they were not)."""
    return beta / advantage_std
