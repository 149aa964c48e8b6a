"""The Triton kernels, where there are a CUDA device, Triton, and a C compiler for its launcher.

Elsewhere torch's own operations do the same; `status()` says which it is and why. Triton compiles a kernel when it
is first launched (seconds) and keeps it in a cache of its own.
"""

import functools
import subprocess
from types import ModuleType

import torch


def kernels() -> ModuleType | None:
    """rlhf_core/kernels/triton_scores.py; None if it does not run here, for the reason in `status()`."""
    loaded = _load()
    return None if isinstance(loaded, str) else loaded


def status() -> str:
    """`triton`, or `torch: ` and why the kernels are not used."""
    loaded = _load()
    return f"torch: {loaded}" if isinstance(loaded, str) else "triton"


@functools.cache
def _load() -> ModuleType | str:
    """The module after one launch, or why there is none."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        from triton.errors import TritonError

        from rlhf_core.kernels import triton_scores
    except ImportError as error:
        return str(error)
    try:
        row = torch.zeros(1, 2, device="cuda")
        triton_scores.scores(row, row, torch.zeros_like(row[:, 0]).long(), temperature=1.0)
    except torch.OutOfMemoryError:  # says nothing of Triton: asked again next time
        raise
    except (OSError, RuntimeError, subprocess.SubprocessError, TritonError) as error:
        return f"Triton: {error}"
    return triton_scores
