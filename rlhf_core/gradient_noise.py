"""How much of a minibatch's gradient is signal: compared over the minibatches of the first epoch, on a sample."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

COORDINATES = 65_536  # of all gradients together, evenly spread: a full model's would double its memory


@contextmanager
def watched_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], *, first: int
) -> Iterator[list[Float[Tensor, " coordinates"]]]:
    """Fills with a sample of the gradients, clipped as they are, that each of the `first` steps is made with."""
    stride = max(1, math.ceil(sum(p.numel() for p in parameters) / COORDINATES))
    seen: list[Tensor] = []

    def look(*_: Any) -> None:
        found = [p.grad.reshape(-1)[::stride] for p in parameters if p.grad is not None]
        if found and len(seen) < first:
            seen.append(torch.cat(found).double())

    handle = optimizer.register_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def signal_to_noise(gradients: Sequence[Float[Tensor, " coordinates"]]) -> float | None:
    """|G|² / s² of K minibatches: s² = Σ |g_k − ḡ|² / (K − 1), |G|² = |ḡ|² − s²/K (McCandlish et al. 2018, A.1).

    Both are unbiased, so that a signal far below the noise may come out negative. The policy moves a little from
    minibatch to minibatch, which counts as noise. None for fewer than two, or if they are all alike.
    """
    if len(gradients) < 2:
        return None
    stacked = torch.stack(list(gradients))
    noise = stacked.var(dim=0).sum()
    if noise == 0:
        return None
    return float((stacked.mean(dim=0).square().sum() - noise / len(gradients)) / noise)
