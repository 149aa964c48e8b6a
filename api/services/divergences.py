"""Divergences of numbers the caller brings: no model, float64.

The formulas of rlhf_core/kl.py once more, in numpy, because this side of the house never imports torch. Each term
of a KL is non-negative and second order in rounding errors, so nothing cancels (docs/algorithms.md).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from api.schemas_scores import Distribution, DistributionsRequest, SampledTokensRequest

Array = npt.NDArray[np.float64]


def diverge(request: DistributionsRequest | SampledTokensRequest) -> dict[str, Any]:
    """The document that answers a request to /v1/divergences, as values for JSON."""
    with np.errstate(all="ignore"):  # infinities are answers here
        if isinstance(request, DistributionsRequest):
            return _between_distributions(request)
        return _of_sampled_tokens(request)


def kl_terms(log_p: Array, log_q: Array) -> Array:
    """h_v ≥ 0 with Σ_v h_v = KL(p ‖ q): exactly 0 for equal entries, +∞ where p > 0 = q."""
    p, q, delta = np.exp(log_p), np.exp(log_q), log_p - log_q
    near = p * (np.expm1(-delta) + delta)
    far = p * delta - p + q
    return np.where(p == 0, q, np.where(np.abs(delta) < 1, near, far))


def log_probabilities(distribution: Distribution) -> Array:
    """ln of the distribution, normalised; −∞ for a probability of 0."""
    values = np.array(distribution.values, dtype=np.float64)
    if distribution.probs is not None:
        values = np.log(values)
    values -= values.max()
    log_total: np.float64 = np.log(np.exp(values).sum())
    return values - log_total


def _between_distributions(request: DistributionsRequest) -> dict[str, Any]:
    log_p, log_q = log_probabilities(request.policy), log_probabilities(request.reference)
    p, q = np.exp(log_p), np.exp(log_q)
    log_mixture = np.where(log_p == log_q, log_p, np.logaddexp(log_p, log_q) - math.log(2))
    present = p > 0
    found = {
        "kl": kl_terms(log_p, log_q).sum(),
        "kl_ref": kl_terms(log_q, log_p).sum(),
        "js": (kl_terms(log_p, log_mixture).sum() + kl_terms(log_q, log_mixture).sum()) / 2,
        "tv": np.abs(p - q).sum() / 2,
        "entropy": -(p[present] * log_p[present]).sum(),
        "cross_entropy": -(p[present] * log_q[present]).sum(),
    }
    return {
        "object": "divergence",
        "unit": "nats",
        "size": len(p),
        **{name: float(value) + 0.0 for name, value in found.items()},  # + 0.0: no −0.0
        "infinite": not all(np.isfinite(value) for value in found.values()),
    }


def _of_sampled_tokens(request: SampledTokensRequest) -> dict[str, Any]:
    k1 = np.array(request.policy_logprobs) - np.array(request.reference_logprobs)
    per_token: dict[str, Array] = {"k1": k1, "k2": np.square(k1) / 2, "k3": np.expm1(-k1) + k1}
    sums = {name: float(values.sum()) for name, values in per_token.items()}
    adjusted = None
    if request.reward is not None and request.beta is not None:
        adjusted = request.reward - request.beta * sums["k1"]
    return {
        "object": "divergence",
        "unit": "nats",
        "n_tokens": len(k1),
        **per_token,
        "sum": sums,
        "adjusted_reward": adjusted,
        "infinite": not all(math.isfinite(value) for value in sums.values()),
    }
