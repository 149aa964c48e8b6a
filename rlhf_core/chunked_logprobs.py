"""Log-probabilities, entropy and exact KL of tokens with a gradient, a chunk of the vocabulary's logits at a time.

The logits of a chunk are made once more for its gradient if they did not all fit the budget.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_core.chunked import (
    CHUNK_BYTES,
    LogitsFn,
    TokenScores,
    assemble,
    block_rows,
    rows_per_chunk,
    score_chunk,
    split_rows,
)
from rlhf_core.kernels import scores as native
from rlhf_core.kernels.scores import LossWeights


class PolicyScores(NamedTuple):
    """What the policy says of each token, in nats; all three have a gradient."""

    logprob: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    kl: Float[Tensor, " tokens"]  # KL(π ‖ ref); 0 without a reference


class Reference(NamedTuple):
    """The other side of a KL, which has no gradient."""

    hidden: Float[Tensor, "tokens ref_hidden"]
    logits: LogitsFn


def chunked_logprobs(
    hidden: Float[Tensor, "tokens hidden"],
    logits_fn: LogitsFn,
    ids: Int[Tensor, " tokens"],
    *,
    weights: Sequence[Tensor] = (),
    reference: Reference | None = None,
    temperature: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> PolicyScores:
    """What `chunked_scores` says, with a gradient to `hidden` and to `weights`, those of the head.

    To the bit if the head's weights are float32. Memory for logits is `chunk_bytes`, backward too (two and a half
    times as much with a soft-cap); the gradient of `weights` comes on top.

        ∂ logprob/∂a = onehot − p     ∂H/∂a_v = −p_v (ln p_v + H)     ∂KL/∂a_v = p_v (δ_v − KL)

    with a the policy's logits over the temperature, p = softmax(a), δ = ln p − ln ref.
    """
    found = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, logits_fn, ids, reference, temperature, chunk_bytes, *weights
    )
    return PolicyScores(*found)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        logits_fn: LogitsFn,
        ids: Tensor,
        reference: Reference | None,
        temperature: float,
        chunk_bytes: int,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        none = logits_fn(hidden[:0])
        row_bytes = none.shape[-1] * none.element_size()
        block = 0 if native.fits(none) else block_rows(row_bytes, chunk_bytes)
        rows = rows_per_chunk(row_bytes, chunk_bytes, block)
        # Without a reference there is none whose memory the gradient could use.
        scratch = 0 if reference is not None else min(rows, len(ids))
        keep = (len(ids) * (1 if reference is None else 2) + scratch) * row_bytes <= chunk_bytes
        ctx.made = []

        def score(part: _Part) -> TokenScores:
            made = _make(part, logits_fn, reference)
            ctx.made += [made] if keep else []
            ours = made.logits.detach()
            theirs = ours if made.reference is None else made.reference
            return score_chunk(ours, theirs, part.ids, temperature, block, 0)

        parts = (score(part) for part in _parts(hidden, ids, reference, rows))
        scores = assemble(parts, len(ids), none)
        ctx.save_for_backward(hidden, ids, scores.entropy, scores.kl, *weights)
        ctx.logits_fn, ctx.reference, ctx.temperature, ctx.rows = logits_fn, reference, temperature, rows
        return scores.policy_logprob, scores.entropy, scores.kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of: Tensor) -> tuple[Tensor | None, ...]:
        hidden, ids, entropy, kl, *weights = ctx.saved_tensors
        wanted = [weight for weight in weights if weight.requires_grad]
        hidden_gradient = torch.empty_like(hidden)
        sums = [torch.promote_types(weight.dtype, torch.float32) for weight in wanted]
        weight_gradients = [torch.zeros_like(w, dtype=wide) for w, wide in zip(wanted, sums, strict=True)]
        rows = torch.split(torch.arange(len(ids), device=ids.device), ctx.rows)
        made = iter(ctx.made)
        for part, at in zip(_parts(hidden, ids, ctx.reference, ctx.rows), rows, strict=True):
            chunk = next(made, None) or _make(part, ctx.logits_fn, ctx.reference)
            gradient = _gradient(
                chunk, part.ids, LossWeights(*(x[at] for x in of)), entropy[at], kl[at], ctx.temperature
            )
            to_hidden, *to_weights = torch.autograd.grad(chunk.logits, [chunk.hidden, *wanted], gradient)
            del chunk, gradient
            hidden_gradient[at] = to_hidden
            for total, share in zip(weight_gradients, to_weights, strict=True):
                total += share
        ctx.made = []
        dealt = iter(total.to(w.dtype) for total, w in zip(weight_gradients, wanted, strict=True))
        for_weights = [next(dealt) if weight.requires_grad else None for weight in weights]
        return hidden_gradient, None, None, None, None, None, *for_weights


class _Part(NamedTuple):
    """Some of the tokens."""

    hidden: Tensor
    ids: Tensor
    reference_hidden: Tensor | None


class _Made(NamedTuple):
    """A part's logits, with the graph from its hidden states to the policy's."""

    hidden: Tensor
    logits: Tensor
    reference: Tensor | None
    reference_is_ours: bool = False  # may be written over


def _parts(hidden: Tensor, ids: Tensor, reference: Reference | None, rows: int) -> Iterable[_Part]:
    if reference is None:
        return (_Part(h, i, None) for h, i in split_rows(rows, hidden, ids))
    return (_Part(*part) for part in split_rows(rows, hidden, ids, reference.hidden))


def _make(part: _Part, logits_fn: LogitsFn, reference: Reference | None) -> _Made:
    with torch.enable_grad():
        hidden = part.hidden.detach().requires_grad_()
        logits = logits_fn(hidden)
    if reference is None or part.reference_hidden is None:
        return _Made(hidden, logits, None)
    with torch.no_grad():
        theirs = reference.logits(part.reference_hidden)
    given = part.reference_hidden.untyped_storage().data_ptr()
    ours = theirs.is_contiguous() and theirs.untyped_storage().data_ptr() != given
    return _Made(hidden, logits, theirs, ours)


@torch.no_grad()
def _gradient(
    chunk: _Made, ids: Tensor, weights: LossWeights, entropy: Tensor, kl: Tensor, temperature: float
) -> Float[Tensor, "rows vocab"]:
    """Of the loss with respect to the policy's logits; may be written over the reference's."""
    logits = chunk.logits.detach()
    if native.fits(logits, *([] if chunk.reference is None else [chunk.reference])):
        logits, out = logits.contiguous(), _scratch(chunk)
        native.gradient(
            *(logits, None if chunk.reference is None else chunk.reference.contiguous(), ids),
            weights=weights,
            entropy=entropy,
            kl=kl,
            temperature=temperature,
            out=out,
        )
        return out
    policy = (logits / temperature).log_softmax(-1)
    p = policy.exp()
    # Finite, because 0 · −∞ would be NaN.
    finite = policy.clamp(min=torch.finfo(policy.dtype).min)
    gradient = -p * (weights.logprob[:, None] + weights.entropy[:, None] * (finite + entropy[:, None]))
    if chunk.reference is not None:
        apart = finite - (chunk.reference / temperature).log_softmax(-1) - kl[:, None]
        gradient += torch.where(p > 0, weights.kl[:, None] * p * apart, 0.0)
    gradient.scatter_add_(1, ids.long()[:, None], weights.logprob[:, None])
    return gradient / temperature


def _scratch(chunk: _Made) -> Tensor:
    """Memory for a gradient: the reference's logits, unless its head answers with what it was given."""
    if chunk.reference is None or not chunk.reference_is_ours:
        return chunk.logits.new_empty(chunk.logits.shape)
    return chunk.reference
