"""Sequences of a rollout as a trunk takes them: real tokens only, but for a little padding at the ends of rows.

The last token of a sequence predicts nothing, so it is never run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_core.causal_lm import CausalLM
from rlhf_core.rollout import Rollout

PACKED_TOKENS = 192  # a row; a dense mask is the attention there: longer rows cost more than they save
PADDING_WASTE = 1.1  # tokens of one sequence a row over those of packed rows: for less a mask costs more


class PackedRollout(NamedTuple):
    """Sequences one after the other in rows, told apart by positions that start again; or one a row."""

    ids: Int[Tensor, "rows time"]
    told_apart: dict[str, Tensor]  # what tells a trunk where sequences begin and end
    before: Int[Tensor, " tokens"]  # the place before each response token, in rows laid end to end

    def predicting(self, model: CausalLM) -> Float[Tensor, "tokens hidden"]:
        """The hidden state before every response token, sequence after sequence."""
        hidden = model.trunk(input_ids=self.ids, use_cache=False, **self.told_apart).last_hidden_state
        rows: Tensor = hidden.flatten(0, 1)[self.before]
        return rows


def pack(rollout: Rollout, *, packs: bool) -> PackedRollout:
    """The layout depends on the lengths of the sequences alone, not on how the rollout is padded.

    Padding to the right of a sequence needs no mask where nothing sees what comes later; a model that cannot be
    trusted to keep packed sequences apart gets one all the same.
    """
    device = rollout.input_ids.device
    real = rollout.attention_mask.bool()
    counts, responses = torch.stack([real.sum(dim=1), rollout.response_mask.sum(dim=1)]).cpu()
    lengths = counts - 1
    starts, shape = _rows(lengths.tolist(), packs=packs)
    alone = shape[0] == len(lengths)

    sequence = torch.arange(len(lengths)).repeat_interleave(counts)
    position = torch.arange(len(sequence)) - (counts.cumsum(dim=0) - counts)[sequence]
    place = starts[sequence] + position
    runs = position < lengths[sequence]
    ids = torch.zeros(shape[0] * shape[1], dtype=torch.long, device=device)
    ids[place[runs].to(device)] = rollout.input_ids[real][runs.to(device)]

    positions = torch.arange(shape[1]).repeat(shape[0]) if alone else torch.zeros(len(ids), dtype=torch.long)
    positions[place[runs]] = position[runs]
    told_apart = {"position_ids": positions.view(shape).to(device)}
    if not packs and len(lengths.unique()) > 1:
        told_apart["attention_mask"] = (torch.arange(shape[1]) < lengths[:, None]).long().to(device)
    before = place[position >= (counts - responses)[sequence]] - 1
    return PackedRollout(ids.view(shape), told_apart, before.to(device))


def _rows(lengths: Sequence[int], *, packs: bool) -> tuple[Int[Tensor, " sequences"], tuple[int, int]]:
    """Where each sequence starts in rows laid end to end, and the number of rows and their length."""
    longest = max(lengths)
    one_a_row = torch.arange(len(lengths)) * longest, (len(lengths), longest)
    if not packs:
        return one_a_row
    filled: list[int] = []
    places: dict[int, tuple[int, int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):  # first fit, longest first
        room = max(PACKED_TOKENS, longest) - lengths[index]
        row = next((row for row, fill in enumerate(filled) if fill <= room), len(filled))
        filled += [0] * (row == len(filled))
        places[index] = row, filled[row]
        filled[row] += lengths[index]
    width = max(filled)
    if len(lengths) * longest <= PADDING_WASTE * len(filled) * width:
        return one_a_row
    starts = [row * width + fill for row, fill in (places[index] for index in range(len(lengths)))]
    return torch.tensor(starts), (len(filled), width)
