"""Saving and resuming the whole training state: safetensors and JSON only, every file's sha256 in a manifest.

A folder holds the weights and tokenizer (an adapter in PEFT's format, or a whole model for AutoModelForCausalLM),
`trainer.safetensors` (value head and its adapter, optimizer moments, torch's RNG), `trainer.json` (step,
controller, evaluations, Python's and numpy's RNG) and `manifest.json`. It names no folder of this machine. Making
it durable and visible is the caller's: write → fsync → rename → row.
"""

import hashlib
import json
import platform
import random
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_core.best_of_n import BestOf
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.controllers import controller_from_state
from rlhf_core.errors import CheckpointError
from rlhf_core.evaluation import Evaluation
from rlhf_core.experience import value_parameters
from rlhf_core.kernels import build
from rlhf_core.policies import Policy, load_policy
from rlhf_core.update import TrainState, fresh_state

MANIFEST = "manifest.json"
FORMAT = 1


def write_checkpoint(folder: Path, policy: Policy, state: TrainState) -> str:
    """Write everything a resumed run needs into an empty folder; returns the manifest's sha256."""
    tensors, numbers = _tensors(policy, state), _numbers(state)
    policy.save(folder)
    _restore_rng(numbers["rng"], tensors)  # saving draws from Python's generator
    save_file(tensors, folder / "trainer.safetensors")
    (folder / "trainer.json").write_text(json.dumps(numbers))
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest = {
        "format": FORMAT,
        "step": state.step,
        "base": policy.base,
        "files": {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files},
        "environment": environment(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    return sha256(folder / MANIFEST)


def verify_checkpoint(folder: Path, manifest_sha256: str | None = None) -> dict[str, Any]:
    """Check every file against the manifest, which is returned.

    Raises:
        CheckpointError: something is missing, was added to the manifest or does not match.
    """
    try:
        if manifest_sha256 is not None and sha256(folder / MANIFEST) != manifest_sha256:
            raise CheckpointError(f"{folder.name}: the manifest is not the one that was recorded")
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        for name, entry in manifest["files"].items():
            if sha256(folder / name) != entry["sha256"]:
                raise CheckpointError(f"{folder.name}: {name} is damaged")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder.name}: {error}") from error
    return manifest


def read_checkpoint(
    folder: Path, config: PPOConfig, *, source: str, device: str = "cpu"
) -> tuple[Policy, TrainState]:
    """Policy and state as they were saved, and the process's RNGs with them. Verify first.

    Raises:
        CheckpointError: the content does not belong to this configuration.
        ModelLoadError: base or saved weights cannot be loaded.
    """
    policy = load_policy(source, folder, config.model, device=device)
    state = fresh_state(policy, config)
    try:
        tensors = load_file(folder / "trainer.safetensors", device=device)
        numbers = json.loads((folder / "trainer.json").read_text())
        state.value_head.load_state_dict(
            {name: tensors[f"value_head.{name}"] for name in state.value_head.state_dict()}
        )
        with torch.no_grad():
            for name, parameter in value_parameters(policy).items():
                parameter.copy_(_fitting(tensors[f"value_adapter.{name}"], parameter, name))
        for name, parameter in _optimized(policy, state).items():
            prefix = f"optimizer.{name}."
            moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if moments:
                state.optimizer.state[parameter] = {
                    key: moment if key == "step" else _fitting(moment, parameter, prefix + key)
                    for key, moment in moments.items()
                }
        state.step = int(numbers["step"])
        state.controller = controller_from_state(numbers["controller"])
        state.steps_above_limit = int(numbers.get("steps_above_limit", 0))  # absent before there was a limit
        state.baseline, state.latest = _evaluation(numbers["baseline"]), _evaluation(numbers["latest"])
        state.best_of_n = tuple(BestOf(*row) for row in numbers.get("best_of_n", ()))  # absent before it was
        _restore_rng(
            numbers["rng"], {name: t.cpu() for name, t in tensors.items() if name.startswith("rng.")}
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{folder.name}: {error}") from error
    return policy, state


def _fitting(saved: Tensor, parameter: nn.Parameter, name: str) -> Tensor:
    """What was saved, unless a parameter of another shape would take it by broadcasting."""
    if saved.shape != parameter.shape:
        raise ValueError(f"{name} has the shape {tuple(saved.shape)}, not {tuple(parameter.shape)}")
    return saved


def environment() -> dict[str, Any]:
    """What a bit-identical resume depends on besides the files."""
    packages = ("torch", "transformers", "peft", "numpy")
    return {
        "packages": {name: version(name) for name in packages},
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "kernels": build.identity(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def other_environment(manifest: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What differs between the process that saved and this one, as [then, now]; empty: bit-identical resume."""
    then, now = manifest.get("environment", {}), environment()
    return {name: [then.get(name), value] for name, value in now.items() if then.get(name) != value}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _optimized(policy: Policy, state: TrainState) -> dict[str, nn.Parameter]:
    head = {f"value_head.{name}": p for name, p in state.value_head.named_parameters()}
    return policy.trainable_parameters() | head | value_parameters(policy)


def _tensors(policy: Policy, state: TrainState) -> dict[str, Tensor]:
    tensors = {f"value_head.{name}": p for name, p in state.value_head.state_dict().items()}
    tensors |= {f"value_adapter.{name}": p for name, p in value_parameters(policy).items()}
    for name, parameter in _optimized(policy, state).items():
        for key, moment in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name}.{key}"] = moment
    tensors |= _torch_generators()
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _numbers(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "controller": state.controller.state_dict(),
        "steps_above_limit": state.steps_above_limit,
        "baseline": state.baseline,
        "latest": state.latest,
        "best_of_n": state.best_of_n,
        "rng": _plain_generators(),
    }


class Generators(NamedTuple):
    """The state of the process's own random number generators, which a reward may draw from."""

    plain: dict[str, Any]
    torch: dict[str, Tensor]

    @classmethod
    def now(cls) -> "Generators":
        """As they are."""
        return cls(_plain_generators(), _torch_generators())

    def restore(self) -> None:
        """As they were."""
        _restore_rng(self.plain, self.torch)


def seed_generators(seed: int) -> None:
    """A new run's process starts where every new run of this seed starts."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _plain_generators() -> dict[str, Any]:
    algorithm, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {"python": random.getstate(), "numpy": [algorithm, keys.tolist(), *rest]}


def _torch_generators() -> dict[str, Tensor]:
    states = {"rng.torch": torch.get_rng_state()}
    return states | ({"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _evaluation(columns: list[list[Any]] | None) -> Evaluation | None:
    return None if columns is None else Evaluation(*(tuple(column) for column in columns))


def _restore_rng(rng: dict[str, Any], states: Mapping[str, Tensor]) -> None:
    kind, internal, gauss = rng["python"]
    random.setstate((kind, tuple(internal), gauss))
    algorithm, keys, *rest = rng["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["rng.torch"])
    if "rng.cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng.cuda"])
