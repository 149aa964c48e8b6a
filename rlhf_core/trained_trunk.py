"""A trunk as it runs in training: no dropout; on request products in bfloat16 and activations made twice."""

import re
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

from rlhf_core.errors import ModelLoadError

# attention_dropout, resid_pdrop, hidden_dropout_prob, layerdrop; the noise that routers add to a mixture's inputs.
_NOISE = re.compile(r"drop|jitter")


class TrainedTrunk(nn.Module):
    """A trunk in train() where its output gets a gradient, else in eval(): the same to the bit without dropout.

    transformers checkpoints activations in train() only, and then has no cache, which sampling needs.
    With `bfloat16` it runs under autocast: products in bfloat16, weights and what is added up in float32.
    """

    def __init__(self, trunk: nn.Module, *, bfloat16: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self._bfloat16 = bfloat16

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """What the trunk says; hidden states of float32, for a head of float32."""
        if self.trunk.training != torch.is_grad_enabled():
            self.trunk.train(torch.is_grad_enabled())
        half = torch.autocast(input_ids.device.type, torch.bfloat16) if self._bfloat16 else nullcontext()
        with half:
            output = self.trunk(input_ids=input_ids, **inputs)
        output.last_hidden_state = output.last_hidden_state.float()
        return output


def silence(model: nn.Module) -> None:
    """Every dropout to p = 0: modules, and the numbers that functional dropout reads from modules and configs."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for owner in (module, getattr(module, "config", None)):
            if isinstance(owner, nn.Module | PreTrainedConfig):
                for name, value in list(vars(owner).items()):
                    if isinstance(value, float) and _NOISE.search(name):
                        setattr(owner, name, 0.0)


def checkpoint_activations(model: Any) -> None:
    """Let the backward pass make each layer's activations again. Raises ModelLoadError if the model cannot."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelLoadError(
            f"{type(model).__name__} cannot checkpoint its activations (model.gradient_checkpointing)"
        )
    # Nothing random is drawn in a layer, so there is no generator to wind back.
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
