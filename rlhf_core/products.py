"""Linear layers in float32 on a CPU, multiplied by oneDNN instead of torch's MKL.

Both come with torch. MKL does not use the vector units of an AMD CPU to the full: from a few rows on oneDNN is
twice as fast there, forward and backward (docs/benchmarks.md). Which one multiplies depends on shapes alone, never
on time, so a run that is repeated repeats every bit.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

LEAST_ROWS = 4  # for fewer MKL is as fast


def available() -> bool:
    """True on an x86 CPU with a torch that has the operation."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def accelerate(model: nn.Module) -> None:
    """Let every plain linear layer of the model multiply by oneDNN where it fits; weights and names stay."""
    if available():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear
            elif type(module) is Conv1D:
                module.__class__ = OneDNNConv1D


def arrange_for_forward(model: PreTrainedModel) -> None:
    """Copy the weights of a frozen model, those of its linear layers into the order that x Wᵀ reads them in.

    The forward pass is then some fifth faster, the way back to x by as much slower. Of the file that weights were
    mapped from nothing is needed any more. Values, shapes and names stay.
    """
    linear = {m.weight for m in model.modules() if type(m) is OneDNNLinear and m.weight.device.type == "cpu"}
    linear -= {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    for weight in model.parameters() if linear else ():
        weight.data = weight.data.t().contiguous().t() if weight in linear else weight.data.clone()


class OneDNNLinear(nn.Linear):
    """x Wᵀ + b; anything but many rows of float32 on a CPU is nn.Linear's."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        if not _fits(input, self.weight, self.in_features):
            return super().forward(input)
        return _product(input, self.weight, self.bias)


class OneDNNConv1D(Conv1D):  # type: ignore[misc]
    """x W + b, GPT-2's linear layer; anything but many rows of float32 on a CPU is Conv1D's."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not _fits(x, self.weight, self.nx):
            product: Tensor = super().forward(x)
            return product
        return _product(x, self.weight.t(), self.bias)


def _fits(x: Tensor, weight: Tensor, width: int) -> bool:
    float32_on_cpu = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return float32_on_cpu and x.numel() // width >= LEAST_ROWS


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b, with a gradient where one is asked for."""
    if torch.is_grad_enabled():
        product: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return product
    return _times_transposed(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _times_transposed(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _times_transposed(gradient, weight.t(), None) if to_x else None,
            _times_transposed(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )


def _times_transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
