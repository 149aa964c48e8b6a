"""Texts as a trunk takes them, and the hidden states that predict their scored tokens.

The last token of a text predicts nothing that is asked for, so it is never run.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_core.causal_lm import CausalLM, branched
from rlhf_core.tokenization import TokenizedText

BRANCHED_TOKENS = (
    1024  # a prompt's completions in one row; in longer rows the dense mask costs more than it saves
)


@runtime_checkable
class Layout(Protocol):
    """Texts that are run together."""

    def predicting(self, model: CausalLM) -> Float[Tensor, "tokens hidden"]:
        """The hidden state before every scored token, text after text."""
        ...


class Rows(NamedTuple):
    """Packed texts as one row, or one text a row, padded on the right."""

    ids: Int[Tensor, "batch time"]
    predicts: Bool[Tensor, "batch time"]  # True where the next token is scored
    told_apart: dict[str, Tensor]  # what tells a trunk where texts begin and end

    def predicting(self, model: CausalLM) -> Float[Tensor, "tokens hidden"]:
        """The trunk once."""
        hidden = model.trunk(input_ids=self.ids, use_cache=False, **self.told_apart).last_hidden_state
        rows: Tensor = hidden[self.predicts]
        return rows


class SharedPrefix(NamedTuple):
    """A prompt, and the completions of it: one a row, padded on the right."""

    prompt: Int[Tensor, "1 prompt"]
    ids: Int[Tensor, "batch time"]
    mask: Bool[Tensor, "batch time"]

    def predicting(self, model: CausalLM) -> Float[Tensor, "tokens hidden"]:
        """The trunk over the prompt, then over all completions with copies of its keys and values."""
        before = model.trunk(input_ids=self.prompt, use_cache=True)
        hidden = before.last_hidden_state[:, -1:].expand(len(self.ids), -1, -1)
        if self.ids.shape[1]:
            cache = before.past_key_values
            cache.batch_repeat_interleave(len(self.ids))
            seen = self.mask.new_ones(len(self.ids), self.prompt.shape[1])
            after = model.trunk(
                input_ids=self.ids,
                attention_mask=torch.cat([seen, self.mask], dim=1).long(),
                past_key_values=cache,
                use_cache=True,
            )
            hidden = torch.cat([hidden, after.last_hidden_state], dim=1)
        predicts = torch.nn.functional.pad(self.mask, (1, 0), value=True)
        rows: Tensor = hidden[predicts]
        return rows


class Branches(NamedTuple):
    """A prompt and the completions of it as one row."""

    ids: Int[Tensor, "1 time"]
    prompt: int
    lengths: list[int]  # of the completions as they are run

    def predicting(self, model: CausalLM) -> Float[Tensor, "tokens hidden"]:
        """The trunk once; every completion begins with what the prompt's last token predicts."""
        dtype = next(model.trunk.parameters()).dtype
        told_apart = branched(self.prompt, self.lengths, dtype, self.ids.device)
        hidden = model.trunk(input_ids=self.ids, use_cache=False, **told_apart).last_hidden_state[0]
        last = hidden[self.prompt - 1 : self.prompt]
        completions = hidden[self.prompt :].split(self.lengths)
        return torch.cat([part for completion in completions for part in (last, completion)])


def lay_out(
    texts: Sequence[TokenizedText], *, prefix: int, packs: bool, branched_tokens: int, device: torch.device
) -> Layout:
    """By a shared prefix if there is one, in one row if that may be as long as `branched_tokens`.

    Texts of one length need no packing, which costs a dense mask.
    """
    if prefix:
        lengths = [len(text.ids) - 1 - prefix for text in texts]
        if prefix + sum(lengths) <= min(branched_tokens, BRANCHED_TOKENS):
            row = np.concatenate([texts[0].ids[:prefix], *(text.ids[prefix:-1] for text in texts)])
            return Branches(torch.from_numpy(row).long()[None].to(device), prefix, lengths)
        ids, mask = _padded([text.ids[prefix:-1] for text in texts])
        prompt = torch.from_numpy(texts[0].ids[None, :prefix]).long()
        return SharedPrefix(prompt.to(device), ids.to(device), mask.to(device))
    alike = len({len(text.ids) for text in texts}) == 1
    return _pad(texts, device) if alike or not packs else _pack(texts, device)


def _pack(texts: Sequence[TokenizedText], device: torch.device) -> Rows:
    """One row; each text's positions start at 0."""
    ids = torch.from_numpy(np.concatenate([text.ids[:-1] for text in texts])).long()
    positions = torch.cat([torch.arange(len(text.ids) - 1) for text in texts])
    first = torch.cat([torch.full((len(text.ids) - 1,), text.first_scored) for text in texts])
    told_apart = {"position_ids": positions[None].to(device)}
    return Rows(ids[None].to(device), (positions + 1 >= first)[None].to(device), told_apart)


def _pad(texts: Sequence[TokenizedText], device: torch.device) -> Rows:
    ids, mask = _padded([text.ids[:-1] for text in texts])
    first = torch.tensor([text.first_scored for text in texts])
    predicts = mask & (torch.arange(mask.shape[1]) + 1 >= first[:, None])
    told_apart = {} if mask.all() else {"attention_mask": mask.long().to(device)}
    return Rows(ids.to(device), predicts.to(device), told_apart)


def _padded(rows: Sequence[np.ndarray]) -> tuple[Int[Tensor, "batch time"], Bool[Tensor, "batch time"]]:
    """Ids, and where they are."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.from_numpy(np.concatenate(rows)).long()
    return ids, mask
