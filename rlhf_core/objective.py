"""What a micro-batch's real tokens contribute to the loss, term by term."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.losses import k2_loss, policy_loss, value_loss


class Tokens(NamedTuple):
    """What the rollout and its targets say of each token; constants of the update."""

    old_logprob: Float[Tensor, " tokens"]
    reference_logprob: Float[Tensor, " tokens"]
    old_value: Float[Tensor, " tokens"]
    advantage: Float[Tensor, " tokens"]
    returns: Float[Tensor, " tokens"]


class Objective(NamedTuple):
    """The terms whose sum is minimised, and what is reported of them; both add up over micro-batches."""

    terms: dict[str, Float[Tensor, ""]]
    report: dict[str, float]


def objective(
    logprob: Float[Tensor, " tokens"],
    value: Float[Tensor, " tokens"],
    tokens: Tokens,
    config: PPOConfig,
    *,
    beta_in_loss: float,
    token_count: int,
) -> Objective:
    """Clipped policy and value loss and the KL loss, as means over the `token_count` tokens of the minibatch."""
    options = config.loss
    on_policy = policy_loss(
        logprob, tokens.old_logprob, tokens.advantage, clip_range=options.clip_range, token_count=token_count
    )
    on_value = value_loss(
        value, tokens.old_value, tokens.returns, clip_range=options.value_clip_range, token_count=token_count
    )
    terms = {"loss/policy": on_policy.loss, "value/loss": on_value.loss}
    if config.kl.loss == "k2":
        drift = k2_loss(logprob, tokens.old_logprob, tokens.reference_logprob, token_count=token_count)
        terms["loss/kl"] = beta_in_loss * drift
    report = {
        "loss/policy": on_policy.loss.item(),
        "value/loss": on_value.loss.item(),
        "value/clip_fraction": float(on_value.clip_fraction),
        "policy/clip_fraction": float(on_policy.clip_fraction),
        "policy/approx_kl": float(on_policy.approx_kl),
        "policy/ratio_max": float(on_policy.ratio_max),
    }
    return Objective(terms, report)
