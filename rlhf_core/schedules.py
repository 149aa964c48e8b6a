"""Values that depend on the number of completed steps alone: nothing to save, nothing to restore.

A shape says how much of the start is left: 1 at progress 0, 0 at progress 1.
"""

import math
from collections.abc import Callable, Mapping

SHAPES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,  # Loshchilov & Hutter 2017, eq. 5
}


def between(start: float, end: float, *, shape: str, done: int, over: int) -> float:
    """From `start` (exactly, at done = 0) to `end` (exactly, from done = `over` on)."""
    left = SHAPES[shape](min(done / over, 1.0))
    return left * start + (1.0 - left) * end


def learning_rate_factor(done: int, *, shape: str, warmup_steps: int, steps: int) -> float:
    """Of the configured rate, for the step after `done` steps.

    (done + 1)/warmup_steps up to 1, then the shape over the steps that are left. No step has a rate of 0.
    """
    if done < warmup_steps:
        return (done + 1) / warmup_steps
    return SHAPES[shape]((done - warmup_steps) / (steps - warmup_steps))
