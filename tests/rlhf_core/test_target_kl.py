"""An update ends before the step that would be taken too far from the rollout's policy (numerics.md §5)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import update
from rlhf_core.checkpoint import read_checkpoint, write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.update import TrainState, fresh_state
from tests.rlhf_core.test_checkpoint import advance, config, digest
from tests.rlhf_core.test_fixed_points import REFERENCE, SCORES, TabularPolicy
from tests.rlhf_core.test_fixed_points import config as tabular_config

pytestmark = pytest.mark.usefixtures("no_shape_checks")


def with_target(options: PPOConfig, target_kl: float | None, **optimization: Any) -> PPOConfig:
    changes = optimization | {"target_kl": target_kl}
    fields = options.model_dump() | {"optimization": options.optimization.model_dump() | changes}
    return PPOConfig.model_validate(fields)


def begin(options: PPOConfig, source: str) -> tuple[LoraPolicy, TrainState]:
    policy = new_policy(source, options.model, seed=0)
    return policy, fresh_state(policy, options)


class Recorded(list[float]):
    """The approximate KL of each minibatch by the definition, computed from the table at its beginning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.tables: list[Tensor] = []
        self.of_parts: list[float] = []  # the largest over parts of five rows
        real = update.update_minibatch

        def update_minibatch(
            policy: Any, state: Any, experience: Any, targets: Any, rows: Any, *a: Any, **k: Any
        ):
            table = policy._policy.head.weight.detach().clone()
            self.tables.append(table)
            ids = experience.rollout.response_ids[rows, 0]
            d = table[:, 0].log_softmax(0)[ids] - experience.logprob[rows, 0]
            drift = d.exp() - 1 - d
            self.append(float(drift.mean()))
            self.of_parts.append(max(float(part.mean()) for part in drift.split(5)))
            return real(policy, state, experience, targets, rows, *a, **k)

        monkeypatch.setattr(update, "update_minibatch", update_minibatch)


def one_step(target_kl: float | None, *, micro_batch: int | None = None) -> tuple[StepResult, Tensor]:
    """Four epochs of four minibatches on the bandit; the table after them."""
    options = tabular_config({}, beta=0.5, tokens=1, steps=1, batch=256)
    options = with_target(options, target_kl, epochs=4, minibatches=4, learning_rate=0.03)
    policy = TabularPolicy([REFERENCE])

    def reward(_: Any, completions: Any, __: Any) -> list[float]:
        return [SCORES[int(text)] for text in completions]

    (step,) = train(
        policy,
        fresh_state(policy, options),
        options,
        prompts=["."],
        eval_prompts=[],
        reward=reward,
        micro_batch=micro_batch,
    )
    return step, policy._policy.head.weight.detach().clone()  # type: ignore[operator,return-value]


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_the_minibatch_above_the_target_is_the_first_without_a_step(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    drifts = Recorded(monkeypatch)
    one_step(None)
    assert len(drifts) == 16
    assert drifts[0] == 0.0
    target = max(drifts[:9]) * (1 + 1e-9)  # nine minibatches at least are not above it
    expected = next(i for i, drift in enumerate(drifts) if drift > target)
    assert 9 <= expected < 16
    assert max(drifts.of_parts[:expected]) > target  # a check of each part would stop too early
    table = drifts.tables[expected]

    drifts.clear()
    step, stopped = one_step(target, micro_batch=micro_batch)
    assert step.metrics["update/minibatches"] == expected
    assert len(drifts) == expected + 1
    assert step.metrics["policy/approx_kl"] == pytest.approx(sum(drifts) / len(drifts), abs=1e-12)
    torch.testing.assert_close(stopped, table, rtol=0, atol=0 if micro_batch is None else 1e-9)


def test_without_a_target_every_minibatch_is_stepped_on() -> None:
    step, _ = one_step(None)
    assert step.metrics["update/minibatches"] == 16.0


def test_t26_resume_inside_an_update_that_ends_early(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the second minibatch of step 2 and resumed from step 1: to the bit as undisturbed."""
    source = str(tiny_model)
    options = with_target(config({"kind": "pi"}), 0.02, epochs=3)
    policy, state = begin(options, source)
    lines = advance(policy, state, options, 1)
    saved = tmp_path / "step-1"
    saved.mkdir()
    write_checkpoint(saved, policy, state)
    lines += advance(policy, state, options, 4)
    expected = digest(policy, state, tmp_path / "undisturbed")
    assert {line["update/minibatches"] for line in lines} & {2.0, 3.0, 4.0, 5.0}  # some of six

    policy, state = read_checkpoint(saved, options, source=source)
    calls, real = 0, update.update_minibatch

    class Killed(Exception):
        pass

    def update_minibatch(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Killed
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(update, "update_minibatch", update_minibatch)
        with pytest.raises(Killed):
            advance(policy, state, options, 4)

    policy, state = read_checkpoint(saved, options, source=source)
    assert json.dumps(advance(policy, state, options, 4)) == json.dumps(lines[1:])
    assert digest(policy, state, tmp_path / "resumed") == expected
