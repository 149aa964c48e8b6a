"""What an update works towards: the leash in the reward, advantages, and β as the loss has to take it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.advantages import GAE, gae, token_rewards
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.config.update import AdvantagesConfig
from rlhf_core.experience import Experience
from rlhf_core.losses import beta_in_loss
from rlhf_core.masking import masked_whiten


class Targets(NamedTuple):
    """Per token of the responses; 0 where masked."""

    advantage: Float[Tensor, "batch response"]
    returns: Float[Tensor, "batch response"]  # what the value head learns
    penalty: Float[Tensor, "batch response"]  # what was subtracted from the rewards
    advantage_std: float  # σ_A before whitening, in reward units
    beta_in_loss: float


def make_targets(
    experience: Experience, scores: Float[Tensor, " batch"], beta: float, config: PPOConfig
) -> Targets:
    """Rewards with the KL penalty in them, GAE, whitening; the loss's β follows the whitening.

    Advantages without variance are whitened to zeros. They carry no reward units, so β stays what it is.
    """
    mask = experience.rollout.response_mask
    penalty = torch.where(mask, beta * _charge(experience, config), 0.0)
    rewards = token_rewards(scores.to(experience.value), penalty, mask)
    if config.kl.penalty in ("hybrid", "exact"):
        estimate = _after_own_penalty(rewards, penalty, experience, config.advantages)
    else:
        options = config.advantages
        estimate = gae(rewards, experience.value, mask, gamma=options.gamma, lam=options.gae_lambda)
    advantage = estimate.advantages
    if config.kl.penalty == "hybrid":
        advantage = torch.where(mask, advantage - beta * (experience.k1 - experience.kl), 0.0)
    whitened = masked_whiten(advantage, mask)
    sigma, in_loss = float(whitened.std), beta
    if config.advantages.whiten:
        advantage = whitened.values
        in_loss = beta_in_loss(beta, sigma) if bool(advantage.any()) else beta
    return Targets(advantage, estimate.returns, penalty, sigma, in_loss)


def _charge(experience: Experience, config: PPOConfig) -> Float[Tensor, "batch response"]:
    """What a nat in the reward is counted by."""
    if config.kl.penalty == "k1":
        return experience.k1
    if config.kl.penalty in ("hybrid", "exact"):
        return experience.kl
    return torch.zeros_like(experience.k1)


def _after_own_penalty(
    rewards: Float[Tensor, "batch response"],
    penalty: Float[Tensor, "batch response"],
    experience: Experience,
    options: AdvantagesConfig,
) -> GAE:
    """GAE with a value head that predicts what follows the slot's own penalty.

    That penalty is known before the token is drawn, unlike k1: the state's value is the head's minus it.
    """
    mask = experience.rollout.response_mask
    estimate = gae(rewards, experience.value - penalty, mask, gamma=options.gamma, lam=options.gae_lambda)
    return GAE(estimate.advantages, torch.where(mask, estimate.advantages + experience.value, 0.0))
