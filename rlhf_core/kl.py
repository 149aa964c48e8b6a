"""How far a policy π is from its reference, in nats: estimates from sampled tokens, and exact divergences.

The direction is KL(policy ‖ reference) unless a name says `kl_ref`. `k1`, `k2`, `k3` need only the
log-probability of one sampled token under each model (Schulman 2020); their mean is what their docstring says
only if the token was drawn from π. `kl` sums the whole vocabulary and needs no sample.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.kernels import scores as native
from rlhf_core.logprobs import entropy_of, gather_tokens
from rlhf_core.masking import masked_sum

CHUNK_BYTES = 48 * 2**20  # two tensors that malloc keeps for the next chunk: above 32 MiB it returns them
# Where the C kernel does not fit:
_BLOCK_BYTES = 2 * 2**20  # a block and its temporaries fit the last-level cache
_BLOCK_TEMPORARIES = 14  # tensors of a block's size alive at once in _score_block

LogitsFn = Callable[[Float[Tensor, "rows hidden"]], Float[Tensor, "rows vocab"]]


class Divergences(NamedTuple):
    """All of one pair of distributions π, ref over the vocabulary."""

    kl: Float[Tensor, "*b"]  # KL(π ‖ ref)
    kl_ref: Float[Tensor, "*b"]  # KL(ref ‖ π)
    js: Float[Tensor, "*b"]  # Jensen–Shannon, weights ½: at most ln 2
    tv: Float[Tensor, "*b"]  # total variation ½ Σ |π − ref|: at most 1, no unit
    entropy: Float[Tensor, "*b"]  # H(π)
    cross_entropy: Float[Tensor, "*b"]  # −Σ π ln ref = H(π) + KL(π ‖ ref)


class TokenScores(NamedTuple):
    """What both models say of each token, in nats, and of the distributions that predict it."""

    policy_logprob: Float[Tensor, " tokens"]
    reference_logprob: Float[Tensor, " tokens"]
    kl: Float[Tensor, " tokens"]  # as in Divergences, also those below
    kl_ref: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    cross_entropy: Float[Tensor, " tokens"]
    tv: Float[Tensor, " tokens"]
    js: Float[Tensor, " tokens"]


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


@torch.no_grad()
def chunked_scores(
    policy_hidden: Float[Tensor, "tokens hidden"],
    reference_hidden: Float[Tensor, "tokens ref_hidden"],
    policy_logits_fn: LogitsFn,
    reference_logits_fn: LogitsFn,
    ids: Int[Tensor, " tokens"],
    *,
    temperature: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenScores:
    """Score tokens from both trunks' hidden states at the positions that predict them. Forward only.

    Of each model only one chunk of logits exists at a time: logits and temporaries take about `chunk_bytes`,
    whatever the number of tokens (never less than one token's). The heads are called with rows of the hidden
    states, each once with none of them to learn vocabulary and dtype; both must answer in float32 or float64.
    """
    none, nothing = policy_logits_fn(policy_hidden[:0]), reference_logits_fn(reference_hidden[:0])
    row_bytes = none.shape[-1] * none.element_size()
    block = 0 if native.fits(none, nothing) else _block_rows(row_bytes, chunk_bytes)
    rows = max(1, (chunk_bytes // row_bytes - _BLOCK_TEMPORARIES * block) // 2)
    pairs = zip(*(torch.split(x, rows) for x in (policy_hidden, reference_hidden, ids)), strict=True)
    chunks = (
        _score_chunk(policy_logits_fn(policy), reference_logits_fn(reference), chunk_ids, temperature, block)
        for policy, reference, chunk_ids in pairs
    )
    return _concatenate(chunks)


def _block_rows(row_bytes: int, chunk_bytes: int) -> int:
    """Rows per block: its temporaries fit a cache, and half of `chunk_bytes`."""
    return max(1, min(_BLOCK_BYTES, chunk_bytes // (4 * _BLOCK_TEMPORARIES)) // row_bytes)


def _score_chunk(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, " rows"],
    temperature: float,
    block: int,
) -> TokenScores:
    """Score a chunk: by the C kernel, or block by block, so that torch's many passes read the cache."""
    if native.fits(policy_logits, reference_logits):
        return TokenScores(
            *native.scores(policy_logits, reference_logits, ids, temperature=temperature).unbind(1)
        )
    blocks = zip(*(torch.split(x, block) for x in (policy_logits, reference_logits, ids)), strict=True)
    return _concatenate(_score_block(p, q, block_ids, temperature) for p, q, block_ids in blocks)


def _score_block(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, " rows"],
    temperature: float,
) -> TokenScores:
    policy = (policy_logits / temperature).log_softmax(-1)
    reference = (reference_logits / temperature).log_softmax(-1)
    found = divergences_of(policy, reference)
    return TokenScores(
        policy_logprob=gather_tokens(policy, ids),
        reference_logprob=gather_tokens(reference, ids),
        kl=found.kl,
        kl_ref=found.kl_ref,
        entropy=found.entropy,
        cross_entropy=found.cross_entropy,
        tv=found.tv,
        js=found.js,
    )


def _concatenate(parts: Iterable[TokenScores]) -> TokenScores:
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))
