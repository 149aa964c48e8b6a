"""A run that leaves its reference ends as `kl_diverged`, before the update that would take it further."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import ppo
from rlhf_core.checkpoint import read_checkpoint, write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import KLDiverged
from rlhf_core.policies import new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.update import TrainState, fresh_state
from tests.rlhf_core.test_checkpoint import config as lora_config
from tests.rlhf_core.test_fixed_points import TabularPolicy
from tests.rlhf_core.test_fixed_points import config as tabular_config


def limited(options: PPOConfig, limit: float, patience: int) -> PPOConfig:
    kl = options.kl.model_dump() | {"limit": {"max_nats_per_sequence": limit, "patience_steps": patience}}
    return PPOConfig.model_validate(options.model_dump() | {"kl": kl})


def reported(monkeypatch: pytest.MonkeyPatch, kls: Iterator[float]) -> None:
    """The exact KL of the steps to come, in nats per sequence: the controller and the limit see nothing else."""
    real = ppo.assess

    def assess(*args: Any, **kwargs: Any) -> Any:
        experience = real(*args, **kwargs)
        kl = torch.zeros_like(experience.kl)
        kl[:, 0] = next(kls)
        return experience._replace(kl=kl)

    monkeypatch.setattr(ppo, "assess", assess)


def bandit(options: PPOConfig) -> tuple[TabularPolicy, TrainState]:
    policy = TabularPolicy([[0.5, 0.5]])
    return policy, fresh_state(policy, options)


def steps(policy: Any, state: TrainState, options: PPOConfig) -> Iterator[StepResult]:
    def reward(_: Any, completions: Any, __: Any) -> list[float]:
        return [
            float(index) for index in range(len(completions))
        ]  # they differ: each update moves the policy

    return train(policy, state, options, prompts=["The cat"], eval_prompts=[], reward=reward)


@pytest.mark.parametrize(
    ("kls", "patience", "ends_at"),
    [
        ([3.0], 1, 1),
        ([2.0, 2.0, 2.0], 1, None),  # at the limit is not above it
        ([3.0, 3.0, 3.0], 3, 3),
        ([3.0, 3.0, 1.0, 3.0, 3.0, 1.0], 3, None),  # never three in a row
        ([3.0, 3.0, 1.0, 3.0, 3.0, 3.0], 3, 6),
    ],
)
def test_so_many_steps_in_a_row_above_the_limit_are_one_too_many(
    monkeypatch: pytest.MonkeyPatch, kls: list[float], patience: int, ends_at: int | None
) -> None:
    options = limited(tabular_config({}, beta=0.1, tokens=1, steps=len(kls), batch=8), 2.0, patience)
    policy, state = bandit(options)
    reported(monkeypatch, iter(kls))
    run, done = steps(policy, state, options), 0
    if ends_at is None:
        assert [step.step for step in run] == list(range(1, len(kls) + 1))
        return
    first = table(policy)
    for _ in range(ends_at - 1):
        done = next(run).step
    before = table(policy)
    assert done == 0 or not torch.equal(before, first)
    with pytest.raises(KLDiverged) as caught:
        next(run)
    assert (caught.value.step, caught.value.kl, caught.value.limit, caught.value.steps) == (
        ends_at,
        3.0,
        2.0,
        patience,
    )
    assert (state.step, state.intact) == (done, True)
    assert torch.equal(table(policy), before)


def table(policy: TabularPolicy) -> Tensor:
    return next(iter(policy.trainable_parameters().values())).detach().clone()


def test_the_exact_kl_of_the_rollouts_is_what_counts() -> None:
    """Step 1 has KL 0 to the bit, so step 2 is the first that a limit of almost nothing can end."""
    options = limited(tabular_config({}, beta=0.1, tokens=1, steps=3, batch=8), 1e-12, 1)
    policy, state = bandit(options)
    run = steps(policy, state, options)
    assert next(run).metrics["kl/sequence"] == 0.0
    with pytest.raises(
        KLDiverged, match=r"step 2: exact sequence KL is .* above the limit of 1e-12 nats for 1 step "
    ):
        next(run)


def test_t26_the_count_goes_on_after_a_resume(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tiny_model)
    options = limited(lora_config({"kind": "fixed"}), 2.0, 3)
    policy = new_policy(source, options.model, seed=0)
    state = fresh_state(policy, options)
    reported(monkeypatch, iter([3.0, 3.0, 3.0]))
    run = steps(policy, state, options)
    next(run), next(run)
    write_checkpoint(tmp_path, policy, state)
    assert json.loads((tmp_path / "trainer.json").read_text())["steps_above_limit"] == 2

    policy, state = read_checkpoint(tmp_path, options, source=source)
    with pytest.raises(KLDiverged, match=r"step 3: .* for 3 steps in a row"):
        next(steps(policy, state, options))


def test_the_error_says_what_was_measured_and_can_be_copied() -> None:
    twin = copy.copy(KLDiverged(7, 12.3456, 10.0, 3))
    assert twin.step == 7
    assert (
        str(twin)
        == "step 7: exact sequence KL is 12.35 nats, above the limit of 10 nats for 3 steps in a row"
    )
