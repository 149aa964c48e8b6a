"""Weights on the KL that is charged, by item of the vocabulary and by position in the response.

The weighted KL of a position is Σ_v w_v h_v, and E[w(y) d ∇ ln π(y)] its gradient: a token is charged w(y) d for
itself. The tokens before it are charged for the position's weighted KL. That is not the mean of w(y) d, which
lacks Σ_v w_v (q_v − p_v) and may be negative: a prefix would be paid for leading to tokens of little weight. What
lacks is known before the token is drawn, so it adds nothing to the gradient of the position itself.
"""

from collections.abc import Collection
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.chunked import LogitsFn, TokenScores, chunked_scores
from rlhf_core.config.kl import KLWeights
from rlhf_core.errors import UnknownToken
from rlhf_core.kl import k1, weighted_kl


class WeightTable(NamedTuple):
    """`KLWeights` of one model; a slot's weight is that of its token times that of its position."""

    listed: Int[Tensor, " listed"]  # items with a weight of their own
    of_tokens: Float[Tensor, " vocab"]
    of_positions: Float[Tensor, " longest_response"]


class WeightedKL(NamedTuple):
    """Per token, in nats: E[own + of_state] = kl."""

    own: Float[Tensor, "*b"]  # w(y) d
    of_state: Float[Tensor, "*b"]  # Σ_v w_v (q_v − p_v), known before the token is drawn
    kl: Float[Tensor, "*b"]  # Σ_v w_v h_v, exact


@runtime_checkable  # beartype asks
class _Codec(Protocol):
    """The part of experience.Codec that finds tokens."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    def encode(self, text: str) -> list[int]: ...


def weight_table(
    weights: KLWeights, codec: _Codec, *, vocab_size: int, longest_response: int, device: torch.device
) -> WeightTable:
    """The weights of a model's tokens. Raises UnknownToken."""
    of_tokens = torch.ones(vocab_size, dtype=torch.float64)
    listed: list[int] = []
    for item in weights.tokens:
        for token in _ids_of(item.token, codec, vocab_size):
            if token in listed:
                raise UnknownToken(f"kl.weights: {item.token!r} is token {token}, which has a weight already")
            listed.append(token)
            of_tokens[token] = item.weight
    of_positions = torch.ones(longest_response, dtype=torch.float64)
    for place in weights.positions:
        of_positions[place.start : place.end] = place.weight
    ids = torch.tensor(listed, dtype=torch.long, device=device)
    return WeightTable(ids, of_tokens.to(device), of_positions.to(device))


def _ids_of(token: str | int, codec: _Codec, vocab_size: int) -> Collection[int]:
    if token == "eos":  # noqa: S105
        found: Collection[int] = sorted(codec.eos_ids)
        if not found:
            raise UnknownToken("kl.weights: 'eos': the model has no token that ends a completion")
    else:
        found = [token if isinstance(token, int) else _id_of_text(token, codec)]
    if max(found) >= vocab_size:
        raise UnknownToken(
            f"kl.weights: {token!r} is token {max(found)}, the model has 0 to {vocab_size - 1}"
        )
    return found


def _id_of_text(text: str, codec: _Codec) -> int:
    """The one token that a text adds to what the tokenizer adds to any."""
    added, ids = codec.encode(""), codec.encode(text)
    own = [token for at, token in enumerate(ids) if ids[:at] + ids[at + 1 :] == added]
    if not own:
        count = len(ids) - len(added)
        raise UnknownToken(f"kl.weights: the text {text!r} is {count} tokens of this tokenizer, not one")
    return own[0]


def weighted_scores(
    hidden: Float[Tensor, "tokens hidden"],
    reference_hidden: Float[Tensor, "tokens hidden"],
    logits_fn: LogitsFn,
    reference_logits_fn: LogitsFn,
    ids: Int[Tensor, " tokens"],
    table: WeightTable,
    *,
    temperature: float,
) -> tuple[TokenScores, WeightedKL]:
    """What `chunked_scores` says, and the KL with the tokens' weights, without those of positions."""
    columns = torch.cat([ids[:, None], table.listed.expand(len(ids), -1)], dim=1)
    ours, theirs = _KeptColumns(logits_fn, columns), _KeptColumns(reference_logits_fn, columns)
    scores = chunked_scores(hidden, reference_hidden, ours, theirs, ids, temperature=temperature)
    logp = ours.logprobs(scores.policy_logprob, temperature)
    ref_logp = theirs.logprobs(scores.reference_logprob, temperature)
    of_tokens = table.of_tokens.to(scores.kl)
    beyond_one = of_tokens[table.listed] - 1
    weighted = WeightedKL(
        own=of_tokens[ids] * k1(scores.policy_logprob, scores.reference_logprob),
        of_state=((ref_logp.exp() - logp.exp()) * beyond_one).sum(-1),  # over all items q − p sums to 0
        kl=scores.kl + weighted_kl(logp, ref_logp, beyond_one),
    )
    return scores, weighted


class _KeptColumns:
    """A head that remembers the logits of some items for each row, the row's own token first."""

    def __init__(self, logits_fn: LogitsFn, columns: Int[Tensor, "tokens items"]) -> None:
        self._logits_fn, self._columns = logits_fn, columns
        self._kept: Tensor | None = None
        self._at = 0

    def __call__(self, rows: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocab"]:
        logits = self._logits_fn(rows)
        if self._kept is None:  # before the first chunk: see chunked.assemble
            self._kept = logits.new_empty(self._columns.shape)
        part = slice(self._at, self._at + len(rows))
        self._kept[part] = logits.gather(1, self._columns[part])
        self._at = part.stop
        return logits

    def logprobs(
        self, of_own: Float[Tensor, " tokens"], temperature: float
    ) -> Float[Tensor, "tokens listed"]:
        """Log-probabilities of the listed items, given that of each row's token: no sum over the vocabulary."""
        assert self._kept is not None
        return (self._kept[:, 1:] - self._kept[:, :1]) / temperature + of_own[:, None]
