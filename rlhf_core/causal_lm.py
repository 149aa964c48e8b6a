"""A model as trunk and head apart, so that logits never exist for more rows than asked for."""

import logging
from dataclasses import dataclass, replace
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

log = logging.getLogger(__name__)


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
    caches: bool = False  # the trunk goes on from keys and values of a prefix
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
        logits: Tensor = _wide_product(self.head, hidden) if half else self.head(hidden)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits


def _wide_product(head: nn.Module, hidden: Tensor) -> Tensor:
    if not isinstance(head, nn.Linear):  # the whole model has answered already
        return hidden.float()
    if hidden.is_cuda and not torch.is_grad_enabled():  # the tensor cores add up in float32 anyway
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = torch.mm(flat, head.weight.t(), out_dtype=torch.float32).reshape(*hidden.shape[:-1], -1)
        return logits if head.bias is None else logits + head.bias.float()
    bias = None if head.bias is None else head.bias.float()
    return nn.functional.linear(hidden.float(), head.weight.float(), bias)


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
        context=int(getattr(config, "max_position_embeddings", 0) or 2**31 - 1),
        logit_scale=_logit_scale(config),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
    )
    probe = torch.tensor([[0, 1 % found.vocab_size]], device=model.device)
    with torch.inference_mode():
        theirs = model(input_ids=probe, use_cache=False).logits.float()
        agrees = isinstance(head, nn.Linear) and torch.allclose(
            found.logits(found.trunk(input_ids=probe, use_cache=False).last_hidden_state).float(),
            *(theirs, 1e-3, 1e-3),
        )
    if not agrees:
        name = type(model).__name__
        log.warning("%s: its head is not one linear layer; all logits are made at once, which is slow", name)
        found = replace(
            found,
            trunk=_WholeModel(model),
            head=nn.Identity(),
            logit_scale=1.0,
            logit_softcap=None,
            splits=False,
        )
    packs = _packs(found.trunk, found.vocab_size, model.device)
    return replace(found, packs=packs, caches=_caches(found.trunk, found.vocab_size, model.device))


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
    except (TypeError, ValueError, RuntimeError):  # no position_ids, or a context of less than 16 tokens
        return False
    return bool((packed - alone).abs().max() <= 0.03 * (mixed - alone).abs().max())


@torch.inference_mode()
def _caches(trunk: nn.Module, vocab_size: int, device: torch.device) -> bool:
    """True if the trunk goes on from copies of a prefix's keys and values as if it had read the prefix."""
    ids = torch.arange(12, device=device)[None] % vocab_size
    try:
        whole = trunk(input_ids=ids, use_cache=False).last_hidden_state[:, 8:].float()
        cache = trunk(input_ids=ids[:, :8], use_cache=True).past_key_values
        cache.batch_repeat_interleave(2)
        rest = trunk(input_ids=ids[:, 8:].expand(2, -1), past_key_values=cache, use_cache=True)
        alone = trunk(input_ids=ids[:, 8:], use_cache=False).last_hidden_state.float()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # no such cache, or a context of less
        return False
    error, without = (rest.last_hidden_state.float() - whole).abs().max(), (alone - whole).abs().max()
    return bool(error <= 0.03 * without)


def _logit_scale(config: Any) -> float:
    """Cohere multiplies the logits by `logit_scale`, Granite divides them by `logits_scaling`."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling)
    return float(getattr(config, "logit_scale", None) or 1.0)
