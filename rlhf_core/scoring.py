"""How far the policy is from the reference on given texts, token by token.

Texts are packed: one row, one after the other, without padding. Where a model cannot be packed they are padded on
the right, in batches of a budget of padded tokens. The trunks run once per model and batch; only the hidden states
that predict a scored token go through the vocabulary, in chunks (rlhf_core/kl.py).
"""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.chunked import CHUNK_BYTES, chunked_scores
from rlhf_core.errors import TokenizerMismatch
from rlhf_core.kl import k1, k2, k3
from rlhf_core.models import CausalLM, ModelPair
from rlhf_core.tokenization import Int32Array, TokenizedText

PACKED_TOKENS_ON_CPU = 256  # a dense mask is their attention: longer rows cost more than they save
PADDING_WASTE = 1.25  # padded over real tokens; on a CPU more padding costs more than a smaller batch


class Capacity(NamedTuple):
    """The longest text that both models take, in tokens, and the vocabulary they share."""

    context: int
    vocab_size: int
    packed_tokens: int = 0  # most tokens of texts packed into one row; 0: they must be padded


class ScoredText(NamedTuple):
    """One entry per token; entry t is about the distribution that predicts token t.

    `scored[t]` is False for token 0 and for the prompt; every quantity (float32; nats but for `tv`) is NaN there.
    """

    ids: Int32Array
    start: Int32Array  # byte spans in the UTF-8 of prompt + text
    end: Int32Array
    scored: npt.NDArray[np.bool_]
    quantities: dict[str, npt.NDArray[np.float32]]


class _Batch(NamedTuple):
    ids: Int[Tensor, "batch time"]
    scored: Bool[Tensor, "batch time"]
    layout: dict[str, Tensor]  # what tells a trunk where texts begin and end


def capacity(pair: ModelPair) -> Capacity:
    """What both models of the pair can take.

    Raises:
        TokenizerMismatch: their logits are over vocabularies of different size.
    """
    with pair.policy() as policy:
        ours, context = policy.vocab_size, policy.context
    with pair.reference() as reference:
        theirs, context = reference.vocab_size, min(context, reference.context)
        device = next(reference.head.parameters()).device
    if ours != theirs:
        raise TokenizerMismatch(f"the policy has {ours} logits per token, the reference {theirs}")
    packed_tokens = 0
    if pair.packs:
        packed_tokens = PACKED_TOKENS_ON_CPU if device.type == "cpu" else sys.maxsize
    return Capacity(context, ours, packed_tokens)


def fill_batch(
    lengths: Sequence[int], first: int, *, max_batch_tokens: int, packed_tokens: int = 0
) -> list[int]:
    """Indices of texts to run together: `first`, which always goes, and others.

    Packed (`packed_tokens` > 0): those of its own length if they are enough, for they need no packing; else in
    their order whatever fits `packed_tokens` and `max_batch_tokens`. Padded: those nearest to `first` in length,
    at most `max_batch_tokens` padded tokens and at most PADDING_WASTE times the real ones.
    """
    if packed_tokens:
        alike = [first, *(i for i, length in enumerate(lengths) if length == lengths[first] and i != first)]
        if len(alike) * lengths[first] >= packed_tokens:
            return alike[: max(1, max_batch_tokens // lengths[first])]
        room, packed = min(packed_tokens, max_batch_tokens) - lengths[first], [first]
        for index, length in enumerate(lengths):
            if index != first and length <= room:
                packed.append(index)
                room -= length
        return packed
    batch, longest, real = [first], lengths[first], lengths[first]
    others = (index for index in range(len(lengths)) if index != first)
    for index in sorted(others, key=lambda index: abs(lengths[index] - lengths[first])):
        padded = max(longest, lengths[index]) * (len(batch) + 1)
        if padded <= max_batch_tokens and padded <= PADDING_WASTE * (real + lengths[index]):
            batch.append(index)
            longest, real = max(longest, lengths[index]), real + lengths[index]
    return batch


def score_texts(
    pair: ModelPair,
    texts: Sequence[TokenizedText],
    *,
    temperature: float = 1.0,
    max_batch_tokens: int = 2048,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[ScoredText]:
    """Score any number of texts, longest first; the answers keep the order of `texts`."""
    answers: dict[int, ScoredText] = {}
    waiting = sorted(range(len(texts)), key=lambda index: -len(texts[index].ids))
    packed_tokens = capacity(pair).packed_tokens
    while waiting:
        lengths = [len(texts[index].ids) for index in waiting]
        places = fill_batch(lengths, 0, max_batch_tokens=max_batch_tokens, packed_tokens=packed_tokens)
        batch = [waiting[place] for place in places]
        scores = score_batch(
            pair, [texts[index] for index in batch], temperature=temperature, chunk_bytes=chunk_bytes
        )
        answers.update(zip(batch, scores, strict=True))
        waiting = [index for index in waiting if index not in answers]
    return [answers[index] for index in range(len(texts))]


@torch.inference_mode()
def score_batch(
    pair: ModelPair,
    texts: Sequence[TokenizedText],
    *,
    temperature: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> list[ScoredText]:
    """Score texts in one batch: each model's trunk once, then the scored positions through the vocabulary."""
    with pair.policy() as policy:
        device = next(policy.head.parameters()).device
        alike = len({len(text.ids) for text in texts}) == 1
        batch = _pad(texts, device) if alike or not pair.packs else _pack(texts, device)
        policy_hidden = _predicting(policy, batch)
    with pair.reference() as reference:
        reference_hidden = _predicting(reference, batch)
    scores = chunked_scores(
        policy_hidden,
        reference_hidden,
        policy.logits,
        reference.logits,
        batch.ids[batch.scored],
        temperature=temperature,
        chunk_bytes=chunk_bytes,
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
    }
    return _unpack(texts, {name: values.float().cpu().numpy() for name, values in quantities.items()})


def _pack(texts: Sequence[TokenizedText], device: torch.device) -> _Batch:
    """One row; each text's positions start at 0."""
    ids = torch.from_numpy(np.concatenate([text.ids for text in texts])).long()
    positions = torch.cat([torch.arange(len(text.ids)) for text in texts])
    scored = torch.cat([torch.arange(len(text.ids)) >= text.first_scored for text in texts])
    return _Batch(ids[None].to(device), scored[None].to(device), {"position_ids": positions[None].to(device)})


def _pad(texts: Sequence[TokenizedText], device: torch.device) -> _Batch:
    lengths = torch.tensor([len(text.ids) for text in texts])
    first_scored = torch.tensor([text.first_scored for text in texts])
    positions = torch.arange(int(lengths.max()))
    mask = positions < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.from_numpy(np.concatenate([text.ids for text in texts])).long()
    scored = mask & (positions >= first_scored[:, None])
    layout = {} if mask.all() else {"attention_mask": mask.long().to(device)}
    return _Batch(ids.to(device), scored.to(device), layout)


def _predicting(model: CausalLM, batch: _Batch) -> Float[Tensor, "tokens hidden"]:
    """Hidden states at t−1 for every scored token t, text after text: a text's first token is never scored."""
    hidden = model.trunk(input_ids=batch.ids, use_cache=False, **batch.layout)
    rows: Tensor = hidden.last_hidden_state[:, :-1][batch.scored[:, 1:]]
    return rows


def _unpack(
    texts: Sequence[TokenizedText], quantities: dict[str, npt.NDArray[np.float32]]
) -> list[ScoredText]:
    """Deal the rows of a batch out to its texts."""
    answers: list[ScoredText] = []
    offset = 0
    for text in texts:
        n_tokens, n_scored = len(text.ids), len(text.ids) - text.first_scored
        columns: dict[str, npt.NDArray[np.float32]] = {}
        for name, values in quantities.items():
            columns[name] = np.full(n_tokens, np.nan, dtype=np.float32)
            columns[name][text.first_scored :] = values[offset : offset + n_scored]
        scored = np.arange(n_tokens) >= text.first_scored
        answers.append(ScoredText(text.ids, text.start, text.end, scored, columns))
        offset += n_scored
    return answers
