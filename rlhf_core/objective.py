"""What a micro-batch's real tokens contribute to the loss, term by term."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from rlhf_core.chunked_logprobs import PolicyScores
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.losses import k2_loss, k3_loss, policy_loss, ratio_k1_loss, value_loss

_KL_LOSSES = {"k2": k2_loss, "k3": k3_loss, "ratio_k1": ratio_k1_loss}


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
    scores: PolicyScores,
    value: Float[Tensor, " tokens"],
    tokens: Tokens,
    config: PPOConfig,
    *,
    beta_in_loss: float,
    token_count: int,
) -> Objective:
    """Policy and value loss, KL loss, entropy bonus: means over the `token_count` tokens of the minibatch."""
    options = config.loss
    on_policy = policy_loss(
        scores.logprob,
        tokens.old_logprob,
        tokens.advantage,
        clip_range=options.clip_range,
        dual_clip=options.dual_clip,
        token_count=token_count,
    )
    on_value = value_loss(
        value, tokens.old_value, tokens.returns, clip_range=options.value_clip_range, token_count=token_count
    )
    terms = {"loss/policy": on_policy.loss, "value/loss": on_value.loss}
    drift = kl_loss(scores, tokens, config, token_count=token_count)
    if drift is not None:
        terms["loss/kl"] = beta_in_loss * drift
    if options.entropy_coefficient:
        terms["loss/entropy"] = -options.entropy_coefficient * scores.entropy.sum() / token_count
    report = {name: term.item() for name, term in terms.items()} | {
        "value/clip_fraction": float(on_value.clip_fraction),
        "policy/clip_fraction": float(on_policy.clip_fraction),
        "policy/approx_kl": float(on_policy.approx_kl),
        "policy/ratio_max": float(on_policy.ratio_max),
    }
    return Objective(terms, report)


def kl_loss(
    scores: PolicyScores, tokens: Tokens, config: PPOConfig, *, token_count: int
) -> Float[Tensor, ""] | None:
    """KL(π ‖ ref) in nats per token, prefixes as given: exact, or by the estimator that the loss is asked for."""
    if config.kl.penalty == "exact":
        return scores.kl.sum() / token_count
    if config.kl.loss == "none":
        return None
    estimate = _KL_LOSSES[config.kl.loss]
    return estimate(scores.logprob, tokens.old_logprob, tokens.reference_logprob, token_count=token_count)
