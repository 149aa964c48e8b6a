"""Divergences of numbers the caller brings: no model, float64.

The formulas of rlhf_core/kl.py once more, in numpy, because this side of the house never imports torch. Each term
of a KL is non-negative and second order in rounding errors, so nothing cancels (docs/algorithms.md).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from api.schemas_divergences import (
    Distribution,
    DistributionsRequest,
    DivergencesRequest,
    SampledTokensRequest,
    SequencesRequest,
)
from api.services.statistics import EXACT, NOTES, summarise
from rlhf_core.statistics import sequence_sums

Array = npt.NDArray[np.float64]


def diverge(request: DivergencesRequest) -> dict[str, Any]:
    """The document that answers a request to /v1/divergences, as values for JSON."""
    with np.errstate(all="ignore"):  # infinities are answers here
        if isinstance(request, DistributionsRequest):
            return _between_distributions(request)
        if isinstance(request, SequencesRequest):
            return _of_sequences(request)
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
    per_token = _estimators(request.policy_logprobs, request.reference_logprobs)
    sums = {name: float(values.sum()) for name, values in per_token.items()}
    return {
        "object": "divergence",
        "unit": "nats",
        "n_tokens": len(request.policy_logprobs),
        **per_token,
        "sum": sums,
        "adjusted_reward": _adjusted(request.reward, request.beta, sums["k1"]),
        "infinite": _infinite(sums),
    }


def _of_sequences(request: SequencesRequest) -> dict[str, Any]:
    texts = [
        _estimators(ours, theirs)
        for ours, theirs in zip(request.policy_logprobs, request.reference_logprobs, strict=True)
    ]
    sums = {name: np.array([text[name].sum() for text in texts]) for name in ("k1", "k2", "k3")}
    for name, given in (("kl", request.kl), ("kl_ref", request.kl_ref)):
        if given is not None:
            sums[name] = np.array([np.sum(text) for text in given])
    n_tokens = np.array([len(text["k1"]) for text in texts], dtype=np.float64)
    return {
        "object": "list",
        "unit": "nats",
        "sampled_from": request.sampled_from,
        "data": [
            _sequence(
                request, index, int(n_tokens[index]), {name: float(x[index]) for name, x in sums.items()}
            )
            for index in range(len(texts))
        ],
        "summary": _summary(request, [text["k1"] for text in texts], sums, n_tokens)
        if len(texts) > 1
        else None,
        "note": NOTES[request.sampled_from],
    }


def _summary(
    request: SequencesRequest, k1: Sequence[Array], sums: Mapping[str, Array], n_tokens: Array
) -> dict[str, Any]:
    exact = sums.get(EXACT[request.sampled_from])
    return summarise(
        sums,
        n_tokens,
        sequence_sums(k1, exact, reference_wrote=request.sampled_from == "reference"),
        clusters=request.clusters or range(len(k1)),
        sampled_from=request.sampled_from,
    )


def _sequence(request: SequencesRequest, index: int, n_tokens: int, sums: dict[str, float]) -> dict[str, Any]:
    reward = None if request.reward is None else request.reward[index]
    return {
        "object": "divergence",
        "index": index,
        "n_tokens": n_tokens,
        "sums": sums,
        "means": {name: value / n_tokens for name, value in sums.items()},
        "adjusted_reward": _adjusted(reward, request.beta, sums["k1"]),
        "infinite": _infinite(sums),
    }


def _estimators(policy: Sequence[float], reference: Sequence[float]) -> dict[str, Array]:
    """k1, k2 and k3 of each token."""
    k1 = np.array(policy) - np.array(reference)
    return {"k1": k1, "k2": np.square(k1) / 2, "k3": np.expm1(-k1) + k1}


def _adjusted(reward: float | None, beta: float | None, k1: float) -> float | None:
    return None if reward is None or beta is None else reward - beta * k1


def _infinite(sums: Mapping[str, float]) -> bool:
    return not all(math.isfinite(value) for value in sums.values())
