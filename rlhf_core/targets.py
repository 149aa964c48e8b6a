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
    returns: Float[Tensor, "batch response"]
    beta_in_loss: float


def make_targets(
    experience: Experience, scores: Float[Tensor, " batch"], beta: float, config: PPOConfig
) -> Targets:
    """Rewards with the KL penalty in them, GAE, whitening; the loss's β follows the whitening."""
    mask = experience.rollout.response_mask
    penalty = experience.k1 if config.kl.penalty == "k1" else torch.zeros_like(experience.k1)
    rewards = token_rewards(scores.to(experience.value), penalty, mask, beta=beta)
    options = config.advantages
    estimate = gae(rewards, experience.value, mask, gamma=options.gamma, lam=options.gae_lambda)
    if not options.whiten:
        return Targets(estimate.advantages, estimate.returns, beta)
    whitened = masked_whiten(estimate.advantages, mask)
    return Targets(whitened.values, estimate.returns, beta_in_loss(beta, float(whitened.std)))
