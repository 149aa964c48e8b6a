"""Rewards, advantages and returns under each way of charging KL, by arithmetic."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import ppo, targets
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience
from rlhf_core.policies import new_policy
from rlhf_core.rollout import Rollout
from rlhf_core.targets import make_targets
from rlhf_core.update import fresh_state
from tests.rlhf_core.kl_settings import KL_SETTINGS


def config(*, whiten: bool = False, **kl: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": ["The cat"]},
            "reward": {"kind": "sentiment"},
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "kl": kl,
            "advantages": {"gae_lambda": 1.0, "whiten": whiten},
            "loss": {"value_clip_range": None},
            "optimization": {"steps": 2, "learning_rate": 0.02},
        }
    )


def f64(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def experience(*, k1: Tensor, kl: Tensor, value: Tensor, mask: Tensor | None = None) -> Experience:
    real = torch.ones_like(k1, dtype=torch.bool) if mask is None else mask
    ids = torch.zeros(len(k1), 1 + k1.shape[1], dtype=torch.long)
    ended = torch.ones(len(k1), dtype=torch.bool)
    rollout = Rollout(ids, ids + 1, real, torch.zeros_like(k1), ended, prompt_width=1)
    return Experience(rollout, torch.zeros_like(k1), k1, kl, torch.zeros_like(k1), value)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("penalty", "advantage", "returns", "subtracted"),
    [
        # β = .5, V = (.4, .6), score 2, d = (.3, .1), e = (.2, .05); β d = (.15, .05), β e = (.1, .025)
        ("none", [1.6, 1.4], [2, 2], [0, 0]),
        ("k1", [1.4, 1.35], [1.8, 1.95], [0.15, 0.05]),  # 2 − .05 − .15 − .4; 2 − .05 − .6
        # What follows the own penalty: 2 − .025 and 2. Less V: 1.575 and 1.4.
        ("exact", [1.575, 1.4], [1.975, 2], [0.1, 0.025]),
        # Less .5 (d − e) = (.05, .025) besides; that has the mean 0, so the value head does not learn it.
        ("hybrid", [1.525, 1.375], [1.975, 2], [0.1, 0.025]),
    ],
)
def test_what_each_penalty_makes_of_a_response(
    penalty: str, advantage: list[float], returns: list[float], subtracted: list[float]
) -> None:
    garbage = [math.nan]
    given = experience(
        k1=f64([0.3, 0.1, *garbage]),
        kl=f64([0.2, 0.05, *garbage]),
        value=f64([0.4, 0.6, *garbage]),
        mask=torch.tensor([[True, True, False]]),
    )
    found = make_targets(given, torch.tensor([2.0]).double(), 0.5, config(penalty=penalty))
    close(found.advantage, f64([*advantage, 0]))
    close(found.returns, f64([*returns, 0]))
    close(found.penalty, f64([*subtracted, 0]))
    assert found.beta_in_loss == 0.5  # nothing was divided


def test_whitening_divides_the_losss_beta_too() -> None:
    # A = (1, 3): σ² = 2
    given = experience(k1=f64([0], [0]), kl=f64([0], [0]), value=f64([0], [0]))
    scores = torch.tensor([1.0, 3.0]).double()
    found = make_targets(given, scores, 0.1, config(whiten=True, penalty="none", loss="k2"))
    sigma = math.sqrt(2 + 1e-8)
    close(found.advantage, f64([-1 / sigma], [1 / sigma]))
    assert found.advantage_std == pytest.approx(sigma, abs=1e-12)
    assert found.beta_in_loss == pytest.approx(0.1 / sigma, abs=1e-12)
    # Without whitening σ_A is told all the same.
    plain = make_targets(given, scores, 0.1, config(penalty="none", loss="k2"))
    assert (plain.advantage_std, plain.beta_in_loss) == (found.advantage_std, 0.1)


@pytest.mark.parametrize("kl", KL_SETTINGS, ids=str)
@pytest.mark.parametrize("scores", [[0.7], [0.7, 0.7], [0.7, 0.7 + 1e-7]])
def test_advantages_that_whitening_makes_zeros_leave_the_losss_beta_alone(
    kl: dict[str, str], scores: list[float]
) -> None:
    """sqrt(0 + 1e-8) = 1e-4 divides nothing; β over it would be 10⁴ β."""
    nothing = f64(*([0.0] for _ in scores))
    given = experience(k1=nothing, kl=nothing, value=nothing)
    found = make_targets(given, torch.tensor(scores).double(), 0.1, config(whiten=True, **kl))
    assert not found.advantage.any()
    assert found.beta_in_loss == 0.1
    assert found.advantage_std == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("kl", KL_SETTINGS, ids=str)
def test_what_is_logged_is_what_was_subtracted_to_the_bit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, kl: dict[str, str]
) -> None:
    """Rewards of a real model in float32, as GAE gets them; scores are 0 once the policy has moved."""
    rewards: list[Tensor] = []
    real = targets.gae

    def recorded(rewards_of_step: Tensor, *args: Any, **more: Any) -> Any:
        rewards.append(rewards_of_step)
        return real(rewards_of_step, *args, **more)

    monkeypatch.setattr(targets, "gae", recorded)
    options = config(whiten=True, **kl)
    policy = new_policy(str(tiny_model), options.model, seed=0)
    run = ppo.train(
        policy,
        fresh_state(policy, options),
        options,
        prompts=["The cat"],
        eval_prompts=[],
        reward=lambda prompts, *_: [float(i) * (not rewards) for i in range(len(prompts))],
    )
    first, second = list(run)
    assert first.metrics["kl/penalty"] == 0  # the policy was its reference
    assert second.metrics["kl/sequence"] > 0
    assert second.metrics["kl/penalty"] == float((-rewards[1]).sum(dim=1).mean())
    assert second.metrics["reward/adjusted_mean"] == pytest.approx(-second.metrics["kl/penalty"], rel=1e-6)
    assert (second.metrics["kl/penalty"] != 0) == (kl["penalty"] != "none")
