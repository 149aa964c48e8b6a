"""How far the policy is from the reference on given texts, token by token.

Which texts go together is rlhf_core/batches.py's, how they are run rlhf_core/layouts.py's. The trunks run once per
model and batch; only the hidden states that predict a scored token go through the vocabulary, in chunks
(rlhf_core/chunked.py).
"""

import sys
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlhf_core.batches import Capacity, in_batches, shared_prefix
from rlhf_core.causal_lm import CausalLM
from rlhf_core.chunked import CHUNK_BYTES, LogitsFn, chunked_scores
from rlhf_core.errors import TokenizerMismatch
from rlhf_core.kl import k1, k2, k3
from rlhf_core.layouts import lay_out
from rlhf_core.models import ModelPair
from rlhf_core.tokenization import Int32Array, TokenizedText

VocabMismatch = Literal["error", "intersect"]
PACKED_TOKENS_ON_CPU = 256  # a dense mask is their attention: longer rows cost more than they save


class TopItems(NamedTuple):
    """Of each token the k vocabulary items with the largest terms of `kl`, largest first; 0 where not scored."""

    ids: npt.NDArray[np.int32]  # [tokens, k], as all
    policy_logprob: npt.NDArray[np.float32]
    reference_logprob: npt.NDArray[np.float32]
    kl_term: npt.NDArray[np.float32]


class ScoredText(NamedTuple):
    """One entry per token; entry t is about the distribution that predicts token t.

    `scored[t]` is False for token 0 and for the prompt; every quantity (float32; nats but for `tv`) is NaN there.
    """

    ids: Int32Array
    start: Int32Array  # byte spans in the UTF-8 of prompt + text
    end: Int32Array
    scored: npt.NDArray[np.bool_]
    quantities: dict[str, npt.NDArray[np.float32]]
    top: TopItems | None = None


def refuse_mismatch(pair: ModelPair, vocab_mismatch: VocabMismatch = "error") -> None:
    """Raises TokenizerMismatch if the heads differ in size and nobody asked for their intersection."""
    ours, theirs = pair.vocab_sizes
    if ours != theirs and vocab_mismatch == "error":
        raise TokenizerMismatch(
            f"the policy has {ours} logits per token, the reference {theirs}; with vocab_mismatch intersect both "
            f"are taken over the first {min(ours, theirs)}"
        )


def capacity(pair: ModelPair, vocab_mismatch: VocabMismatch = "error") -> Capacity:
    """What both models of the pair can take; the vocabulary is the smaller one.

    Raises:
        TokenizerMismatch: their logits are over vocabularies of different size, and `vocab_mismatch` is `error`.
    """
    refuse_mismatch(pair, vocab_mismatch)
    with pair.policy() as policy:
        context = policy.context
    with pair.reference() as reference:
        context = min(context, reference.context)
        device = reference.device
    packed_tokens = 0
    if pair.packs:
        most = PACKED_TOKENS_ON_CPU if device.type == "cpu" else sys.maxsize
        packed_tokens = min(context, most)  # some models have tables of positions, as long as their context
    return Capacity(context, min(pair.vocab_sizes), packed_tokens, pair.caches)


def score_texts(
    pair: ModelPair,
    texts: Sequence[TokenizedText],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    strict: bool = False,
    vocab_mismatch: VocabMismatch = "error",
    reuse_prefixes: bool = True,
    max_batch_tokens: int = 2048,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[ScoredText]:
    """Score any number of texts, longest first; the answers keep the order of `texts`. `strict`: one by one.

    Raises TokenizerMismatch as `capacity`.
    """
    answers: dict[int, ScoredText] = {}
    limits = capacity(pair, vocab_mismatch)._replace(reuses_prefixes=pair.caches and reuse_prefixes)
    for batch in in_batches(texts, limits, max_batch_tokens=max_batch_tokens, strict=strict):
        scores = score_batch(
            pair,
            [texts[index] for index in batch],
            temperature=temperature,
            top_k=top_k,
            reuse_prefixes=reuse_prefixes,
            chunk_bytes=chunk_bytes,
        )
        answers.update(zip(batch, scores, strict=True))
    return [answers[index] for index in range(len(texts))]


@torch.inference_mode()
def score_batch(
    pair: ModelPair,
    texts: Sequence[TokenizedText],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    reuse_prefixes: bool = True,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[ScoredText]:
    """Score texts in one batch: each model's trunk once, then the scored positions through the vocabulary.

    A prompt that all texts share is run once. Numbers of a text move with its company by rounding alone (docs/
    algorithms.md); a text in a batch of its own has the same to the bit, always. Of heads of different size both
    distributions are over the ids that both have (docs/adr/0006): who calls has looked at `capacity`.
    """
    with pair.policy() as policy:
        device = policy.device
        prefix = shared_prefix(texts) if pair.caches and reuse_prefixes else 0
        layout = lay_out(
            texts, prefix=prefix, packs=pair.packs, branched_tokens=pair.branched_tokens, device=device
        )
        policy_hidden = layout.predicting(policy)
    with pair.reference() as reference:
        reference_hidden = policy_hidden if pair.same else layout.predicting(reference)
    ids = np.concatenate([text.ids[text.first_scored :] for text in texts])
    shared = min(pair.vocab_sizes)
    scores = chunked_scores(
        policy_hidden,
        reference_hidden,
        _logits_of_first(shared, policy),
        _logits_of_first(shared, reference),
        torch.from_numpy(ids).to(device),
        temperature=temperature,
        chunk_bytes=_without_copy(chunk_bytes, *sorted(pair.vocab_sizes)),
        top_k=min(top_k, shared),
    )
    ours, theirs = scores.policy_logprob, scores.reference_logprob
    quantities = {
        "policy_logprob": ours,
        "reference_logprob": theirs,
        "k1": k1(ours, theirs),
        "k2": k2(ours, theirs),
        "k3": k3(ours, theirs),
        "kl": scores.kl,
        "kl_ref": scores.kl_ref,
        "js": scores.js,
        "tv": scores.tv,
        "entropy": scores.entropy,
        "cross_entropy": scores.cross_entropy,
        "entropy_ref": scores.entropy_ref,
        "policy_rank": scores.policy_rank,
        "reference_rank": scores.reference_rank,
    }
    arrays = {name: values.float().cpu().numpy() for name, values in quantities.items()}
    top = None
    if scores.top is not None:
        items, *numbers = scores.top
        top = TopItems(items.int().cpu().numpy(), *(x.float().cpu().numpy() for x in numbers))
    return _unpack(texts, arrays, top)


def _logits_of_first(shared: int, model: CausalLM) -> LogitsFn:
    """The model's logits of ids below `shared`: their softmax is its distribution given that one is drawn."""
    if model.vocab_size == shared:
        return model.logits

    def first(hidden: Tensor) -> Tensor:
        return model.logits(hidden)[..., :shared].contiguous()  # the kernels take no strides

    return first


def _without_copy(chunk_bytes: int, shared: int, most: int) -> int:
    """What two chunks of `shared` columns may take where one of them is cut from a third of `most`."""
    return chunk_bytes if shared == most else chunk_bytes * 2 * shared // (2 * shared + most)


def _unpack(
    texts: Sequence[TokenizedText], quantities: dict[str, npt.NDArray[np.float32]], top: TopItems | None
) -> list[ScoredText]:
    """Deal the rows of a batch out to its texts."""
    answers: list[ScoredText] = []
    offset = 0
    for text in texts:
        n_tokens, n_scored = len(text.ids), len(text.ids) - text.first_scored
        rows = slice(offset, offset + n_scored)
        columns: dict[str, npt.NDArray[np.float32]] = {}
        for name, values in quantities.items():
            columns[name] = np.full(n_tokens, np.nan, dtype=np.float32)
            columns[name][text.first_scored :] = values[rows]
        items = None
        if top is not None:
            empty = ((text.first_scored, 0), (0, 0))
            items = TopItems._make(np.pad(values[rows], empty) for values in top)
        scored = np.arange(n_tokens) >= text.first_scored
        answers.append(ScoredText(text.ids, text.start, text.end, scored, columns, items))
        offset += n_scored
    return answers
