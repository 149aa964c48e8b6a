"""A model as trunk and head apart, so that logits never exist for more rows than asked for."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

log = logging.getLogger(__name__)

# What a model raises that cannot be run the way that is tried.
_PROBE_ERRORS = (AttributeError, LookupError, TypeError, ValueError, RuntimeError)
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
_SLICE_BYTES = 8 * 2**20  # of a half-precision head in float32, on a CPU


@dataclass(frozen=True, eq=False)
class CausalLM:
    """One way to run a model: hidden states from the trunk, float32 logits from the head."""

    trunk: nn.Module
    head: nn.Module
    vocab_size: int
    context: int
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    packs: bool = False  # texts may follow each other in one row, told apart by positions that start again
    caches: bool = False  # the trunk goes on from keys and values of a prefix, copied or some of the rows
    branches: bool = False  # completions of one prompt may share its row, told apart by a mask
    splits: bool = True  # False: the trunk is the whole model and makes all logits at once

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(chain(self.trunk.parameters(), self.head.parameters())).device

    def logits(self, hidden: Float[Tensor, "*b hidden"]) -> Float[Tensor, "*b vocab"]:
        """Logits in at least float32, scaled and soft-capped as the model defines them; no temperature.

        The product of a half-precision head is float32 too: rounded to bfloat16, logits of 20 are 0.125 apart.
        """
        half = hidden.dtype in (torch.bfloat16, torch.float16)
        return self.shaped(_wide_product(self.head, hidden) if half else self.head(hidden))

    def shaped(self, logits: Float[Tensor, "*b vocab"]) -> Float[Tensor, "*b vocab"]:
        """The head's product, scaled and soft-capped in its own dtype."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits


def _wide_product(head: nn.Module, hidden: Tensor) -> Tensor:
    if not isinstance(head, nn.Linear):  # the whole model has answered already
        return hidden.float()
    bias = None if head.bias is None else head.bias.float()
    if torch.is_grad_enabled():  # a copy of the head in float32, for as long as the gradient needs it
        return nn.functional.linear(hidden.float(), head.weight.float(), bias)
    flat = hidden.reshape(-1, head.in_features)
    if hidden.is_cuda:  # the tensor cores add up in float32 anyway
        logits = torch.mm(flat, head.weight.t(), out_dtype=torch.float32)
    else:
        logits = torch.empty(len(flat), head.out_features)
        step = max(1, _SLICE_BYTES // (4 * head.in_features))
        for at in range(0, head.out_features, step):
            torch.mm(flat.float(), head.weight[at : at + step].t().float(), out=logits[:, at : at + step])
    if bias is not None:
        logits += bias
    return logits.reshape(*hidden.shape[:-1], head.out_features)


class _WholeModel(nn.Module):
    """A model as a trunk whose hidden states are its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> SimpleNamespace:
        output = self.model(**inputs)
        return SimpleNamespace(
            last_hidden_state=output.logits, past_key_values=getattr(output, "past_key_values", None)
        )


def split(model: Any) -> CausalLM:
    """Trunk and head of a model whose head is one linear layer, checked against the model's own logits.

    Any other is run as a whole.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    found = CausalLM(
        trunk=model.base_model,
        head=head,
        vocab_size=int(config.vocab_size),
        context=_context(config),
        logit_scale=_logit_scale(config),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
    )
    if not (isinstance(head, nn.Linear) and _agrees(found, model)):
        name = type(model).__name__
        log.warning("%s: its head is not one linear layer; all logits are made at once, which is slow", name)
        whole = _WholeModel(model)
        found = CausalLM(whole, nn.Identity(), found.vocab_size, found.context, splits=False)
    probed = (found.trunk, found.vocab_size, model.device)
    branches = not _has_window(config) and _branches(*probed)
    return replace(found, packs=_packs(*probed), caches=_caches(*probed), branches=branches)


def branched(
    prompt: int, lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """What tells a trunk that a row is a prompt and its completions: positions, and a mask to be added.

    Every completion's positions go on from the prompt's; it sees the prompt and itself.
    """
    sizes = torch.tensor([prompt, *lengths])
    branch = torch.arange(len(sizes)).repeat_interleave(sizes)
    positions = torch.cat([torch.arange(prompt), *(torch.arange(prompt, prompt + n) for n in lengths)])
    sees = ((branch[:, None] == branch) | (branch == 0)).tril()
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
    return {"position_ids": positions[None].to(device), "attention_mask": mask[None, None].to(device)}


@torch.inference_mode()
def _agrees(found: CausalLM, model: Any) -> bool:
    """True if trunk and head apart say what the model says, in its own dtype."""
    probe = torch.tensor([[0, 1 % found.vocab_size]], device=model.device)
    theirs = model(input_ids=probe, use_cache=False).logits
    try:
        hidden = found.trunk(input_ids=probe, use_cache=False).last_hidden_state
        ours = found.shaped(found.head(hidden)).float()
    except _PROBE_ERRORS:  # its trunk is not its base model, or there is a layer in between
        return False
    rtol = max(1e-3, torch.finfo(theirs.dtype).eps)
    return ours.shape == theirs.shape and torch.allclose(ours, theirs.float(), rtol=rtol, atol=1e-3)


@torch.inference_mode()
def _packs(trunk: nn.Module, vocab_size: int, device: torch.device) -> bool:
    """True if the trunk keeps packed texts apart: what the first does to the second is nothing but rounding."""

    def states(ids: Tensor, **positions: Tensor) -> Tensor:
        hidden: Tensor = trunk(input_ids=ids, use_cache=False, **positions).last_hidden_state
        return hidden.float()

    second = torch.arange(8, device=device)[None] % vocab_size
    both, again = torch.cat([second.flip(1), second], dim=1), torch.arange(8, device=device).repeat(2)[None]
    try:
        alone, packed, mixed = states(second), states(both, position_ids=again)[:, 8:], states(both)[:, 8:]
    except _PROBE_ERRORS:  # no position_ids, or a context of less than 16 tokens
        return False
    return bool((packed - alone).abs().max() <= 0.03 * (mixed - alone).abs().max())


@torch.inference_mode()
def _caches(trunk: nn.Module, vocab_size: int, device: torch.device) -> bool:
    """True if the trunk goes on from some copies of a prefix's keys and values as if it had read it."""
    ids = torch.arange(12, device=device)[None] % vocab_size
    try:
        whole = trunk(input_ids=ids, use_cache=False).last_hidden_state[:, 8:].float()
        cache = trunk(input_ids=ids[:, :8], use_cache=True).past_key_values
        cache.batch_repeat_interleave(3)
        cache.batch_select_indices(torch.tensor([0, 2], device=device))
        rest = trunk(input_ids=ids[:, 8:].expand(2, -1), past_key_values=cache, use_cache=True)
        alone = trunk(input_ids=ids[:, 8:], use_cache=False).last_hidden_state.float()
    except _PROBE_ERRORS:  # no such cache, or a context of less
        return False
    error, without = (rest.last_hidden_state.float() - whole).abs().max(), (alone - whole).abs().max()
    return bool(error <= 0.03 * without)


@torch.inference_mode()
def _branches(trunk: nn.Module, vocab_size: int, device: torch.device) -> bool:
    """True if the trunk reads the second of two completions of one prompt as if it followed the prompt."""

    def states(ids: Tensor, **told_apart: Tensor) -> Tensor:
        hidden: Tensor = trunk(input_ids=ids, use_cache=False, **told_apart).last_hidden_state
        return hidden[:, -4:].float()

    prompt, first, second = (torch.arange(12, device=device) % vocab_size).view(3, 1, 4)
    both = torch.cat([prompt, first, second], dim=1)
    dtype = next(trunk.parameters()).dtype
    try:
        alone = states(torch.cat([prompt, second], dim=1))
        together = states(both, **branched(4, [4, 4], dtype, device))
        mixed = states(both)
    except _PROBE_ERRORS:  # another kind of mask, no position_ids, or a context of less
        return False
    return bool((together - alone).abs().max() <= 0.03 * (mixed - alone).abs().max())


def _has_window(config: Any) -> bool:
    """True if some layer sees the latest tokens only: in a row of completions the latest are another's."""
    layers = getattr(config, "layer_types", None)
    if layers is not None:
        return any(layer != "full_attention" for layer in layers)
    return any(getattr(config, name, None) for name in _WINDOWS)


def _context(config: Any) -> int:
    """The longest text. LongRoPE has other frequencies beyond its original length, for all of a batch."""
    context = int(getattr(config, "max_position_embeddings", 0) or 2**31 - 1)
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if one.get("rope_type") == "longrope":
            context = min(context, int(one.get("original_max_position_embeddings") or context))
    return context


def _logit_scale(config: Any) -> float:
    """Cohere multiplies the logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return float(getattr(config, "logit_scale", None) or 1.0)
