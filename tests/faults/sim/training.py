"""A model so small that its whole course is known in advance; it stands in for rlhf_core under worker.run.

The weights are a chain of hashes: step n's are sha256 of step n−1's, so a step that is lost, done twice, or done
on the wrong weights shows in every number that follows.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.spec import PPOSpec
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import NonFiniteLoss, RewardError
from rlhf_core.ppo import StepResult
from tests.faults.sim.kernel import World
from worker.run import Stopped

WEIGHTS = "adapter_model.safetensors"
STEP_S = (0.2, 1.5)


@dataclass
class Policy:
    """All there is to train."""

    weights: str


@dataclass
class State:
    """As rlhf_core.update.TrainState, as far as worker.run looks at it."""

    step: int
    value_head: None = None
    baseline: None = None
    latest: None = None
    best_of_n: tuple[()] = ()
    intact: bool = False


def base_weights(config: PPOConfig) -> str:
    return f"base of seed {config.seed}"


def weights_at(config: PPOConfig, step: int) -> str:
    """What the weights are after so many steps, in every run."""
    weights = base_weights(config)
    for _ in range(step):
        weights = hashlib.sha256(weights.encode()).hexdigest()
    return weights


def metrics_of(weights: str) -> dict[str, float]:
    """What the metrics of the step are that ends in these weights."""
    digest = hashlib.sha256(f"metrics {weights}".encode()).digest()
    parts = {"reward/mean": digest[:6], "kl/sequence": digest[6:12]}
    return {name: int.from_bytes(part, "big") / 2**48 for name, part in parts.items()}


def final_weights_sha256(spec: PPOSpec) -> str:
    """What `checker_files.weights_sha256` says of the final checkpoint of every run that succeeds."""
    content = weights_at(spec.config, spec.config.optimization.steps).encode()
    line = f"{WEIGHTS} {hashlib.sha256(content).hexdigest()}\n"
    return hashlib.sha256(line.encode()).hexdigest()


class Training:
    """The functions that worker.run and worker.saves take from rlhf_core."""

    def __init__(self, world: World) -> None:
        self._world = world

    def new_policy(self, source: str, options: object, *, seed: int, device: str) -> Policy:
        self._world.sleep(0.5)
        return Policy(f"base of seed {seed}")

    def fresh_state(self, policy: Policy, config: PPOConfig) -> State:
        return State(0)

    def lacks_baseline(self, *_: object) -> bool:
        """It evaluates nothing."""
        return False

    def train(self, policy: Policy, state: State, config: PPOConfig, **_: Any) -> Iterator[StepResult]:
        """As rlhf_core.ppo.train: in the middle of a step, policy and state do not belong together."""
        while state.step < config.optimization.steps:
            state.intact = True
            self._trouble(state.step + 1)
            state.intact = False
            policy.weights = hashlib.sha256(policy.weights.encode()).hexdigest()
            self._world.sleep(self._world.rng.uniform(*STEP_S))
            state.step += 1
            yield StepResult(step=state.step, metrics=metrics_of(policy.weights), timings={"step_s": 1.0})

    def _trouble(self, step: int) -> None:
        world = self._world
        world.sleep(world.rng.uniform(*STEP_S))
        kind = world.dice(("hang", "nan", "reward error"))
        if kind is not None:
            world.record(f"{world.current.process.name} step {step} [{kind}]")
        if kind == "nan":
            raise NonFiniteLoss(step, "policy loss", "nan")
        if kind == "reward error":
            raise RewardError("it raised")
        while kind == "hang":
            try:
                world.sleep(1000.0)
            except Stopped:  # inside a library that answers no signal
                continue

    def write_checkpoint(self, folder: Path, policy: Policy, state: State) -> str:
        """Weights, state and manifest; returns the manifest's sha256."""
        files = {WEIGHTS: policy.weights.encode(), "trainer.json": json.dumps({"step": state.step}).encode()}
        for name, content in files.items():
            (folder / name).write_bytes(content)
            self._world.gate.before(f"write {folder.name}/{name}", ("kill before", "freeze"))
        manifest = json.dumps(
            {
                "step": state.step,
                "files": {name: {"sha256": hashlib.sha256(c).hexdigest()} for name, c in files.items()},
            }
        ).encode()
        (folder / "manifest.json").write_bytes(manifest)
        return hashlib.sha256(manifest).hexdigest()

    def read_checkpoint(
        self, folder: Path, config: PPOConfig, *, source: str, device: str
    ) -> tuple[Policy, State]:
        """The inverse."""
        step = int(json.loads((folder / "trainer.json").read_text())["step"])
        return Policy((folder / WEIGHTS).read_text()), State(step)
