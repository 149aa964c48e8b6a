"""The first steps may train the value head alone: policy and β keep every bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core.checkpoint import read_checkpoint, write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.update import TrainState, fresh_state
from tests.rlhf_core.test_checkpoint import STEPS, advance, config, digest

pytestmark = pytest.mark.usefixtures("no_shape_checks")
WARMUP = 2


def begin(tiny_model: Path, **optimization: Any) -> tuple[LoraPolicy, TrainState, PPOConfig]:
    options = config({"kind": "pi"})
    fields = options.model_dump() | {"optimization": options.optimization.model_dump() | optimization}
    options = PPOConfig.model_validate(fields)
    policy = new_policy(str(tiny_model), options.model, seed=0)
    return policy, fresh_state(policy, options), options


def copied(parameters: dict[str, Any]) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def same(now: dict[str, Any], then: dict[str, Tensor]) -> bool:
    return all(torch.equal(now[name], tensor) for name, tensor in then.items())


def test_only_the_value_head_is_trained_until_the_warmup_is_over(tiny_model: Path) -> None:
    policy, state, options = begin(tiny_model, value_only_steps=WARMUP)
    weights, head = copied(policy.trainable_parameters()), copied(dict(state.value_head.named_parameters()))
    controller = state.controller
    lines = advance(policy, state, options, WARMUP)

    assert same(policy.trainable_parameters(), weights)
    assert not any(p in state.optimizer.state for p in policy.trainable_parameters().values())
    assert not same(dict(state.value_head.named_parameters()), head)
    assert state.controller == controller  # pi would have read two steps of KL 0 as a reason to lower β
    assert [(m["kl/sequence"], m["grad/norm"]) for m in lines] == [(0.0, 0.0)] * 2
    assert max(m["policy/approx_kl"] for m in lines) < 1e-10  # later epochs are packed otherwise: rounding

    advance(policy, state, options, WARMUP + 1)
    assert not same(policy.trainable_parameters(), weights)
    assert state.controller != controller


def test_the_value_head_learns_what_it_would_have_learnt_beside_a_policy(tiny_model: Path) -> None:
    """In step 1 both runs have the same rollout, and in its first minibatch the same hidden states."""
    heads = []
    for steps in (0, 1):
        policy, state, options = begin(tiny_model, value_only_steps=steps, epochs=1, minibatches=1)
        advance(policy, state, options, 1)
        heads.append(copied(dict(state.value_head.named_parameters())))
    assert same(*heads)


@pytest.mark.parametrize("boundary", [1, WARMUP])
def test_t26_resume_in_and_after_the_warmup(tiny_model: Path, tmp_path: Path, boundary: int) -> None:
    policy, state, options = begin(tiny_model, value_only_steps=WARMUP)
    lines = advance(policy, state, options, boundary)
    saved = tmp_path / "saved"
    saved.mkdir()
    write_checkpoint(saved, policy, state)
    lines += advance(policy, state, options, STEPS)
    expected = digest(policy, state, tmp_path / "undisturbed")

    policy, state = read_checkpoint(saved, options, source=str(tiny_model))
    assert advance(policy, state, options, STEPS) == lines[boundary:]
    assert digest(policy, state, tmp_path / "resumed") == expected
