"""From hidden states to what two models say of tokens, a chunk of the vocabulary's logits at a time.

Logits of all tokens never exist. Forward only; rlhf_core/chunked_logprobs.py can be differentiated.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.kernels import scores as native
from rlhf_core.kernels.scores import TopTerms
from rlhf_core.kl import divergences_of, kl_terms
from rlhf_core.logprobs import entropy_of, gather_tokens, rank

CHUNK_BYTES = 48 * 2**20  # two tensors that malloc keeps for the next chunk: above 32 MiB it returns them
# Where the C kernel does not fit:
_BLOCK_BYTES = 2 * 2**20  # a block and its temporaries fit the last-level cache
_BLOCK_TEMPORARIES = 14  # tensors of a block's size alive at once in _score_block

LogitsFn = Callable[[Float[Tensor, "rows hidden"]], Float[Tensor, "rows vocab"]]


class TokenScores(NamedTuple):
    """What both models say of each token, in nats, and of the distributions that predict it."""

    policy_logprob: Float[Tensor, " tokens"]
    reference_logprob: Float[Tensor, " tokens"]
    kl: Float[Tensor, " tokens"]  # as in kl.Divergences, also the next four
    kl_ref: Float[Tensor, " tokens"]
    entropy: Float[Tensor, " tokens"]
    cross_entropy: Float[Tensor, " tokens"]
    tv: Float[Tensor, " tokens"]
    entropy_ref: Float[Tensor, " tokens"]  # H(ref)
    policy_rank: Float[Tensor, " tokens"]  # 1 is the likeliest token
    reference_rank: Float[Tensor, " tokens"]
    js: Float[Tensor, " tokens"]
    top: TopTerms | None = None


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
    top_k: int = 0,
) -> TokenScores:
    """Score tokens from both trunks' hidden states at the positions that predict them. Forward only.

    Of each model only one chunk of logits exists at a time: logits and temporaries take about `chunk_bytes`,
    whatever the number of tokens (never less than one token's). The heads are called with rows of the hidden
    states, each once with none of them to learn vocabulary and dtype; both must answer in float32 or float64.
    With one tensor of hidden states for both and equal functions the logits are made once.
    """
    same = policy_hidden is reference_hidden and policy_logits_fn == reference_logits_fn
    none, nothing = policy_logits_fn(policy_hidden[:0]), reference_logits_fn(reference_hidden[:0])
    row_bytes = none.shape[-1] * none.element_size()
    block = 0 if native.fits(none, nothing) else block_rows(row_bytes, chunk_bytes)
    rows = rows_per_chunk(row_bytes, chunk_bytes, block)

    def score(policy: Tensor, reference: Tensor, chunk_ids: Tensor) -> TokenScores:
        ours = policy_logits_fn(policy)
        theirs = ours if same else reference_logits_fn(reference)
        return score_chunk(ours, theirs, chunk_ids, temperature, block, top_k)

    parts = (score(*part) for part in split_rows(rows, policy_hidden, reference_hidden, ids))
    return assemble(parts, len(ids), none, top_k=top_k)


def rows_per_chunk(row_bytes: int, chunk_bytes: int, block: int = 0) -> int:
    """Tokens whose logits under two models, and the temporaries of a block of them, take `chunk_bytes`."""
    return max(1, (chunk_bytes // row_bytes - _BLOCK_TEMPORARIES * block) // 2)


def split_rows(rows: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """So many rows of each at a time."""
    return zip(*(torch.split(x, rows) for x in tensors), strict=True)


def block_rows(row_bytes: int, chunk_bytes: int) -> int:
    """Rows per block: its temporaries fit a cache, and half of `chunk_bytes`."""
    return max(1, min(_BLOCK_BYTES, chunk_bytes // (4 * _BLOCK_TEMPORARIES)) // row_bytes)


def score_chunk(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, " rows"],
    temperature: float,
    block: int,
    top_k: int,
) -> TokenScores:
    """Score a chunk: by the C kernel, or block by block, so that torch's many passes read the cache."""
    if native.fits(policy_logits, reference_logits):
        found = native.scores(policy_logits, reference_logits, ids, temperature=temperature)
        top = None
        if top_k:
            top = native.top_terms(policy_logits, reference_logits, k=top_k, temperature=temperature)
        return TokenScores._make((*found.unbind(1), top))
    blocks = split_rows(block, policy_logits, reference_logits, ids)
    parts = (_score_block(p, q, block_ids, temperature, top_k) for p, q, block_ids in blocks)
    return assemble(parts, len(ids), policy_logits, top_k=top_k)


def _score_block(
    policy_logits: Float[Tensor, "rows vocab"],
    reference_logits: Float[Tensor, "rows vocab"],
    ids: Int[Tensor, " rows"],
    temperature: float,
    top_k: int,
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
        entropy_ref=entropy_of(reference),
        policy_rank=rank(policy_logits, ids),
        reference_rank=rank(reference_logits, ids),
        js=found.js,
        top=_top_terms(policy, reference, top_k) if top_k else None,
    )


def _top_terms(policy: Tensor, reference: Tensor, k: int) -> TopTerms:
    largest = kl_terms(policy, reference).sort(dim=-1, descending=True, stable=True)
    ids = largest.indices[:, :k]
    return TopTerms(ids.int(), policy.gather(1, ids), reference.gather(1, ids), largest.values[:, :k])


def assemble(parts: Iterable[TokenScores], tokens: int, like: Tensor, *, top_k: int = 0) -> TokenScores:
    """The scores of chunks as one, in memory that is taken before the first chunk is made.

    What is allocated between two chunks and kept may lie where the next chunk's logits should: malloc then takes
    new memory for these, chunk after chunk (up to 4.8 GB were seen).
    """
    columns = like.new_empty(len(native.OUTPUTS), tokens)
    top = None
    if top_k:
        top = TopTerms(
            like.new_empty(tokens, top_k, dtype=torch.int32), *like.new_empty(3, tokens, top_k).unbind()
        )
    start = 0
    for part in parts:
        end = start + len(part.policy_logprob)
        for column, values in zip(columns, part[:-1], strict=True):
            column[start:end] = values
        if top is not None and part.top is not None:
            for column, values in zip(top, part.top, strict=True):
                column[start:end] = values
        start = end
        del part, values
    return TokenScores._make((*columns.unbind(), top))
