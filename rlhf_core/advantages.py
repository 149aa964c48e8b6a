"""From a score per response to an advantage per token."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class GAE(NamedTuple):
    """Both are 0 at masked places."""

    advantages: Float[Tensor, "batch time"]
    returns: Float[Tensor, "batch time"]  # advantage + value: what the value head learns


def token_rewards(
    score: Float[Tensor, " batch"],
    penalty: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time"]:
    """r_t = −penalty_t, and the score on the last real token: Σ_t r_t = score − Σ_t penalty_t.

    With β `k1` as the penalty this is the reward whose policy gradient is that of score − β KL(π ‖ ref).
    All are in the score's units.

    Raises:
        ValueError: a response has no real token; its score would be lost.
    """
    if not bool(mask.any(dim=-1).all()):
        raise ValueError("every response needs at least one real token to carry its score")
    position = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask, position, -1).amax(dim=-1, keepdim=True)
    rewards = torch.where(mask, -penalty, 0.0)
    return rewards.scatter_add(-1, last, score.unsqueeze(-1))


def gae(
    rewards: Float[Tensor, "batch time"],
    values: Float[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    gamma: float,
    lam: float,
) -> GAE:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

        δ_t = r_t + γ V_{t+1} − V_t        A_t = δ_t + γ λ A_{t+1}

    "t+1" is the next real token: what lies between is skipped. After the last one V = 0, also when the
    response was cut at its maximum length.
    """
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    columns = []
    for r, v, real in zip(*(x.unbind(-1)[::-1] for x in (rewards, values, mask)), strict=True):
        advantage = r + gamma * next_value - v + gamma * lam * next_advantage
        next_advantage = torch.where(real, advantage, next_advantage)
        next_value = torch.where(real, v, next_value)
        columns.append(torch.where(real, advantage, 0.0))
    advantages = torch.stack(columns[::-1], dim=-1)
    return GAE(advantages, torch.where(mask, advantages + values, 0.0))
