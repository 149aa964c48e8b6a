"""The audit before the first step: silent on what is right, and each bug is found by the check that is for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_core import audit as room
from rlhf_core import experience, rollout
from rlhf_core.audit import Check, audit, require_passed
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import AuditFailed
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.ppo import train
from rlhf_core.rewards import make_reward
from rlhf_core.update import fresh_state

PROMPTS = ("The cat", "A lovely", "The quick brown fox jumps over", "Naïve")
NAMES = ["dropout", "log_ratio", "kl_reference", "kl_initial", "temperature", "company", "generation"]


def config(temperature: float = 0.7) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6, "temperature": temperature},
            "optimization": {"steps": 2, "learning_rate": 0.01},
        }
    )


@pytest.fixture
def policy(tiny_model) -> LoraPolicy:
    made = new_policy(str(tiny_model), config().model, seed=0)
    with made.policy() as model, torch.no_grad():
        for layer in model.trunk.trunk.layers:  # sharp enough for what is wrong to be seen
            layer.self_attn.v_proj.base_layer.weight *= 20
    return made


def checks_of(policy: LoraPolicy, *, is_reference: bool = True) -> list[Check]:
    head = fresh_state(policy, config()).value_head
    return audit(policy, head, config(), PROMPTS, is_reference=is_reference)


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


def test_a_fresh_policy_passes_and_nothing_random_is_used(policy):
    head = fresh_state(policy, config()).value_head
    before = torch.get_rng_state()
    checks = audit(policy, head, config(), PROMPTS, is_reference=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert [check.name for check in checks] == NAMES
    require_passed(checks)
    exact = {check.name: check.value for check in checks if check.bound == 0.0}
    assert exact == {"dropout": 0.0, "log_ratio": 0.0, "kl_reference": 0.0, "kl_initial": 0.0}


def test_a_cold_policy_passes(tiny_model):
    """Rounding of logits / T grows as 1/T, and so do the bounds."""
    cold = config(temperature=0.01)
    policy = new_policy(str(tiny_model), cold.model, seed=0)
    checks = audit(policy, fresh_state(policy, cold).value_head, cold, PROMPTS, is_reference=True)
    require_passed(checks)
    assert {check.name: check.bound for check in checks}["company"] == pytest.approx(2e-2)


def test_a_trained_policy_passes_and_its_distance_is_recorded(policy):
    state, reward = fresh_state(policy, config()), make_reward(config().reward)
    list(train(policy, state, config(), prompts=PROMPTS, eval_prompts=[], reward=reward))
    checks = {check.name: check for check in checks_of(policy, is_reference=False)}
    assert not failed(list(checks.values()))
    assert checks["kl_initial"].value > 0
    assert checks["kl_initial"].bound is None
    assert failed(checks_of(policy)) == {"kl_initial"}  # for a fresh one it would be an error


def dropout_left_on(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    with policy.policy() as model:
        for layer in model.trunk.trunk.layers:
            layer.self_attn.attention_dropout = 0.5


def temperature_on_one_side(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's logits are not divided."""
    real = experience.chunked_scores

    def scores(*args: Any, temperature: float) -> Any:
        *first, reference_logits, ids = args
        return real(
            *first, lambda hidden: reference_logits(hidden) * temperature, ids, temperature=temperature
        )

    monkeypatch.setattr(experience, "chunked_scores", scores)


def padding_is_attended(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the experience is made and trained on, but not where it is sampled."""
    real = experience.response_hidden

    def hidden(model: Any, batch: rollout.Rollout) -> Any:
        return real(model, batch._replace(attention_mask=torch.ones_like(batch.attention_mask)))

    monkeypatch.setattr(experience, "response_hidden", hidden)
    monkeypatch.setattr(room, "response_hidden", hidden)


def a_sequence_alone_is_nan(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.assess

    def assess(*args: Any, **options: Any) -> Any:
        seen = real(*args, **options)
        return seen._replace(logprob=seen.logprob * float("nan")) if len(seen.logprob) == 1 else seen

    monkeypatch.setattr(room, "assess", assess)


def generation_differs(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rollout._sample

    def sample(*args: Any) -> Any:
        token, logprob = real(*args)
        return token, logprob + 1e-3

    monkeypatch.setattr(rollout, "_sample", sample)


def update_differs(policy: LoraPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    real = room.chunked_logprobs

    def logprobs(*args: Any, temperature: float, **rest: Any) -> Any:
        return real(*args, temperature=temperature * (1 + 1e-6), **rest)

    monkeypatch.setattr(room, "chunked_logprobs", logprobs)


@pytest.mark.parametrize(
    ("bug", "found_by"),
    [
        (dropout_left_on, {"dropout", "log_ratio"}),  # no two passes of the update agree
        (temperature_on_one_side, {"kl_initial", "temperature"}),
        (padding_is_attended, {"company", "generation"}),
        (a_sequence_alone_is_nan, {"company"}),
        (generation_differs, {"generation"}),
        (update_differs, {"log_ratio"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_bug_is_found_by_its_check(
    policy, monkeypatch, bug: Callable[[LoraPolicy, pytest.MonkeyPatch], None], found_by: set[str]
):
    bug(policy, monkeypatch)
    checks = checks_of(policy)
    assert failed(checks) == found_by
    with pytest.raises(AuditFailed) as raised:
        require_passed(checks)
    for check in checks:
        assert (f"{check.name} is " in str(raised.value)) is not check.passed
