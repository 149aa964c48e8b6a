"""What an update works towards: the leash in the reward, advantages, and β as the loss has to take it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_core.advantages import gae, token_rewards
from rlhf_core.config.ppo import PPOConfig
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

    Exact KL is known before the token is drawn: where it is the penalty, the value head predicts what follows
    it, and the state's value is the head's minus it; likewise for what `kl.weights` charge to the state.
    Advantages without variance are whitened to zeros. They carry no reward units, so β stays what it is.
    """
    mask, options = experience.rollout.response_mask, config.advantages
    penalty = torch.where(mask, beta * _charge(experience, config), 0.0)
    known = penalty if config.kl.penalty in ("hybrid", "exact") else torch.zeros_like(penalty)
    if experience.weighted is not None:
        known = torch.where(mask, beta * experience.weighted.of_state, 0.0)
    rewards = token_rewards(scores.to(experience.value), penalty, mask)
    estimate = gae(rewards, experience.value - known, mask, gamma=options.gamma, lam=options.gae_lambda)
    advantage, returns = estimate.advantages, estimate.returns + known
    if config.kl.penalty == "hybrid":
        advantage = torch.where(mask, advantage - beta * (experience.k1 - experience.kl), 0.0)
    whitened = masked_whiten(advantage, mask)
    sigma, in_loss = float(whitened.std), beta
    if options.whiten:
        advantage = whitened.values
        in_loss = beta_in_loss(beta, sigma) if bool(advantage.any()) else beta
    return Targets(advantage, returns, penalty, sigma, in_loss)


def _charge(experience: Experience, config: PPOConfig) -> Float[Tensor, "batch response"]:
    """What is charged per token in the reward, in nats."""
    if experience.weighted is not None:
        return experience.weighted.own + experience.weighted.of_state
    if config.kl.penalty == "k1":
        return experience.k1
    if config.kl.penalty in ("hybrid", "exact"):
        return experience.kl
    return torch.zeros_like(experience.k1)
