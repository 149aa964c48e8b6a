"""On CUDA with deterministic kernels a resumed run is, to the bit, the run that never stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TWO_RUNS = """
import hashlib, sys, torch
from pathlib import Path
from rlhf_core.checkpoint import read_checkpoint, seed_generators, write_checkpoint
from rlhf_core.policies import new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import fresh_state
from tests.faults.bench import PROMPTS, spec
from worker.run import fixed_device

source, folder = sys.argv[1], Path(sys.argv[2])
config, device = spec({"lora": {"rank": 2}}).config, fixed_device()
assert device == "cuda"
seed_generators(0)

def finish(policy, state, *, save_at=None):
    reward = make_reward(config.reward)
    steps = train(policy, state, config, prompts=PROMPTS, eval_prompts=PROMPTS[:2], reward=reward)
    lines = []
    for step in steps:
        lines.append((step.step, sorted(step.metrics.items())))
        if step.step == save_at:
            (folder / "saved").mkdir()
            write_checkpoint(folder / "saved", policy, state)
    end = folder / f"end-{save_at}"
    end.mkdir()
    write_checkpoint(end, policy, state)
    files = ("adapter_model.safetensors", "trainer.safetensors", "trainer.json")
    return lines, [hashlib.sha256((end / name).read_bytes()).hexdigest() for name in files]

policy = new_policy(source, config.model, seed=0, device=device)
lines, digests = finish(policy, fresh_state(policy, config), save_at=2)
torch.cuda.manual_seed(99)
resumed, resumed_digests = finish(*read_checkpoint(folder / "saved", config, source=source, device=device))
assert resumed == lines[-len(resumed):] and len(resumed) == 2, (resumed, lines)
assert resumed_digests == digests
"""


def test_t26_resume_is_bit_identical_on_cuda(tiny_model: Path, tmp_path: Path) -> None:
    """In a process of its own: cuBLAS reads its workspace setting when it starts."""
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, str(tiny_model), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_gpu_without_memory_raises_what_we_know() -> None:
    from worker.failures import failure_of

    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")
    failure = failure_of(caught.value, step=1)
    assert failure is not None
    assert failure.code == "cuda_oom"
