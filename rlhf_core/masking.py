"""Sums, means and whitening over real tokens.

`mask` is True for a real token. Whatever stands at a masked place, NaN and infinity included, is replaced
before any arithmetic, so that it reaches neither a value nor a gradient (a product with the mask would be NaN).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Whitened(NamedTuple):
    """Values with mean 0 and standard deviation 1 over the real tokens, and what they were divided by."""

    values: Float[Tensor, "*b"]  # 0 at masked places
    std: Float[Tensor, ""]  # σ_A = sqrt(variance + 1e-8), in the units of the input


def masked_sum(
    x: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"], *, dim: int | None = None
) -> Float[Tensor, "..."]:
    """Σ x over real tokens: of the whole tensor, or along one axis."""
    return torch.where(mask, x, 0.0).sum(dim)


def masked_mean(x: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]) -> Float[Tensor, ""]:
    """Σ x / N over the N real tokens; NaN if there is none, as the mean of nothing is."""
    return masked_sum(x, mask) / mask.sum()


def masked_whiten(x: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]) -> Whitened:
    """(x − μ) / sqrt(σ² + 1e-8) with μ and the Bessel-corrected σ² of the real tokens.

    One real token, or a variance below 1e-12, gives zeros: there is nothing to tell apart. Computed in
    float64, so that the variance of equal float32 values is exactly 0.
    """
    wide = x.double()
    count = mask.sum()
    mean = masked_sum(wide, mask) / count.clamp(min=1)
    centred = torch.where(mask, wide - mean, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    std = (variance + 1e-8).sqrt()
    values = torch.where(variance < 1e-12, 0.0, centred / std)
    return Whitened(values.to(x.dtype), std.to(x.dtype))


def explained_variance(
    returns: Float[Tensor, "*b"], values: Float[Tensor, "*b"], mask: Bool[Tensor, "*b"]
) -> Float[Tensor, ""]:
    """1 − Var(returns − values) / Var(returns) over real tokens: 1 is a perfect value head, 0 a constant one.

    0 if the returns do not vary.
    """
    variance = returns[mask].var(correction=0)
    unexplained = (returns - values)[mask].var(correction=0)
    return torch.where(variance > 0, 1 - unexplained / variance, 0.0)
