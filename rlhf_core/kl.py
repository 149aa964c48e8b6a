"""How far a policy π is from its reference, in nats: estimates from sampled tokens, and exact divergences.

The direction is KL(policy ‖ reference) unless a name says `kl_ref`. `k1`, `k2`, `k3` need only the
log-probability of one sampled token under each model (Schulman 2020); their mean is what their docstring says
only if the token was drawn from π. `kl` sums the whole vocabulary and needs no sample.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_core.logprobs import entropy_of
from rlhf_core.masking import masked_sum


class Divergences(NamedTuple):
    """All of one pair of distributions π, ref over the vocabulary."""

    kl: Float[Tensor, "*b"]  # KL(π ‖ ref)
    kl_ref: Float[Tensor, "*b"]  # KL(ref ‖ π)
    js: Float[Tensor, "*b"]  # Jensen–Shannon, weights ½: at most ln 2
    tv: Float[Tensor, "*b"]  # total variation ½ Σ |π − ref|: at most 1, no unit
    entropy: Float[Tensor, "*b"]  # H(π)
    cross_entropy: Float[Tensor, "*b"]  # −Σ π ln ref = H(π) + KL(π ‖ ref)


def k1(logp: Float[Tensor, "*b"], ref_logp: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """d = ln π(y) − ln ref(y): unbiased for KL(π ‖ ref), may be negative."""
    return logp - ref_logp


def k2(logp: Float[Tensor, "*b"], ref_logp: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """d²/2: never negative, biased; its gradient's mean is that of KL(π ‖ ref)."""
    return (logp - ref_logp).square() / 2


def k3(logp: Float[Tensor, "*b"], ref_logp: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """expm1(−d) + d: never negative, unbiased for KL(π ‖ ref) if ref puts no mass where π has none."""
    log_ratio = ref_logp - logp
    # ∞ − ∞ has the limit ∞: the exponential outgrows the line.
    return torch.where(log_ratio == torch.inf, log_ratio, torch.expm1(log_ratio) - log_ratio)


def sequence_kl(
    per_token: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """Σ_t of a per-token quantity over each sequence's real tokens, in nats per sequence.

    Of exact `kl` on sampled prefixes it is the Rao–Blackwell estimate of the KL between the two processes, of
    `k1` the plain one. Both are unbiased; the first is never negative.
    """
    return masked_sum(per_token, mask, dim=-1)


def kl_terms(
    logprobs: Float[Tensor, "*b vocab"], ref_logprobs: Float[Tensor, "*b vocab"]
) -> Float[Tensor, "*b vocab"]:
    """h_v, each vocabulary item's contribution to KL(π ‖ ref): never negative, 0 where π(v) = ref(v).

    With p = π(v), q = ref(v), δ = ln p − ln q:

        h = q                     if p = 0
        h = p (expm1(−δ) + δ)     if |δ| ≤ 1
        h = p δ − p + q           else

    Their sum is Σ p δ because Σ q − Σ p = 0. Unlike p δ every term is second order in an error of the
    log-sum-exps, so nothing cancels: |error| ≤ 1e-5 KL + 5e-7 √KL + 2e-11 for float32 logits up to 50.
    A reference of −∞ where p > 0 gives +∞.
    """
    p, q = logprobs.exp(), ref_logprobs.exp()
    # −2 stands for any large δ: it selects the last line, which is q for p = 0, and keeps ∞ − ∞ out.
    delta = torch.where(p > 0, logprobs - ref_logprobs, -2.0)
    small = delta.clamp(-1, 1)
    near = p * (torch.expm1(-small) + small)
    far = p * delta - p + q
    return torch.where(small == delta, near, far)


def weighted_kl(
    logprobs: Float[Tensor, "*b items"],
    ref_logprobs: Float[Tensor, "*b items"],
    weights: Float[Tensor, " items"],
) -> Float[Tensor, "*b"]:
    """Σ_v w_v h_v: KL(π ‖ ref) if w = 1 on the whole vocabulary, never negative if w ≥ 0.

    Over the whole vocabulary its gradient is E[w(y) d ∇ ln π(y)], that of w(y) k1 as a reward. The mean of w(y) d
    is another number, Σ_v w_v p_v δ_v, which may be negative.
    """
    return torch.where(weights == 0, 0.0, weights * kl_terms(logprobs, ref_logprobs)).sum(-1)


def divergences(
    policy_logits: Float[Tensor, "*b vocab"],
    reference_logits: Float[Tensor, "*b vocab"],
    *,
    temperature: float = 1.0,
) -> Divergences:
    """Every divergence of softmax(policy_logits / T) from softmax(reference_logits / T).

    Logarithms of probabilities are logits too. Equal logits give exactly 0; −∞ is a probability of 0.
    """
    policy = (policy_logits / temperature).log_softmax(-1)
    return divergences_of(policy, (reference_logits / temperature).log_softmax(-1))


def divergences_of(policy: Float[Tensor, "*b vocab"], reference: Float[Tensor, "*b vocab"]) -> Divergences:
    """The same from normalised log-probabilities."""
    p = policy.exp()
    mixture = torch.where(policy == reference, policy, torch.logaddexp(policy, reference) - math.log(2))
    return Divergences(
        kl=kl_terms(policy, reference).sum(-1),
        kl_ref=kl_terms(reference, policy).sum(-1),
        js=(kl_terms(policy, mixture) + kl_terms(reference, mixture)).sum(-1) / 2,
        tv=(p - reference.exp()).abs().sum(-1) / 2,
        entropy=entropy_of(policy),
        cross_entropy=-(p * torch.where(p > 0, reference, 0.0)).sum(-1),
    )
