"""Without a CUDA device: the Triton kernels compile for one all the same, and why they do not run is told."""

import os
import subprocess
import sys

import pytest
import torch

from rlhf_core.kernels import cuda
from rlhf_core.kernels import scores as native

# Every launch, compiled by a driver that only knows which device to compile for.
COMPILE = """
import sys, torch
from contextlib import suppress
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from rlhf_core.kernels import triton_scores
from rlhf_core.kernels.scores import LossWeights

target = GPUTarget("cuda", int(sys.argv[1]), 32)

class Absent:
    def get_current_target(self): return target
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0

launch, made = JITFunction.run, set()
def compile_only(self, *args, grid, warmup, **options):
    assert launch(self, *args, grid=grid, warmup=True, **options).asm["cubin"]
    made.add(self.__name__)

driver.set_active(Absent())
JITFunction.run = compile_only
ids, row = torch.zeros(2, dtype=torch.long), torch.zeros(2)
own = {"weights": LossWeights(row, row, row), "entropy": row, "kl": row, "temperature": 1.0}
for vocab in (1, 50257, 151936):  # they are compiled apart: 1, not and a multiple of 16
    logits = torch.zeros(2, vocab)
    for level in (0, 1, 2):
        triton_scores.scores(logits, logits, ids, temperature=1.0, level=level)
    with suppress(RuntimeError):  # keys that no kernel wrote name no items
        triton_scores.top_terms(logits, logits, k=1, temperature=1.0)
    for reference in (logits, None):
        triton_scores.gradient(logits, reference, ids, **own, out=logits.clone())
print(*sorted(made))
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_a_device_that_is_not_here(capability: int) -> None:
    pytest.importorskip("triton", reason="Triton is not in the CPU environment")
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["gradient", "join", "keys", "masses", "sums"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_reason_is_told() -> None:
    assert cuda.kernels() is None
    assert cuda.status() == "torch: there is no CUDA device"


def test_logits_on_two_devices_fit_no_kernel() -> None:
    assert not native.fits(torch.zeros(1, 2), torch.zeros(1, 2, device="meta"))
    assert not native.fits(torch.zeros(1, 2, device="meta"))
