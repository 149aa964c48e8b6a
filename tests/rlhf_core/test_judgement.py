"""Rewards in the training loop: what reaches the update, and what is only reported."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.errors import NonFiniteLoss
from rlhf_core.judgement import describe_rewards, judge
from rlhf_core.models import new_lora_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.rewards import WeightedSum, make_reward
from rlhf_core.update import fresh_state

PROMPTS = ("The cat", "A lovely", "The quick brown", "Naïve")
LENGTH = {"kind": "length", "target_tokens": 4}
CATS = {"kind": "keyword", "keywords": ["cat"]}
WEIGHTED = {
    "kind": "weighted",
    "parts": [
        {"name": "short", "weight": 2.0, "reward": LENGTH},
        {"name": "cats", "weight": -1.0, "reward": CATS},
    ],
}


def config(**sections: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS, "eval_prompts": PROMPTS[:2]},
            "reward": LENGTH,
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "optimization": {"steps": 2, "learning_rate": 0.01, "minibatches": 2},
        }
        | sections
    )


def trained(model: Path, options: PPOConfig) -> tuple[list[StepResult], dict[str, bytes]]:
    """Every step of a run, and its last weights to the bit."""
    policy = new_lora_policy(str(model), options.model.lora, seed=0)
    state = fresh_state(policy, options)
    steps = train(
        policy,
        state,
        options,
        prompts=PROMPTS,
        eval_prompts=PROMPTS[:2],
        reward=make_reward(options.reward),
    )
    results = list(steps)
    weights = policy.trainable_parameters() | dict(state.value_head.named_parameters())
    return results, {name: p.detach().numpy().tobytes() for name, p in weights.items()}


def test_a_weighted_sum_is_logged_part_by_part(tiny_model: Path) -> None:
    steps, _ = trained(tiny_model, config(reward=WEIGHTED))
    for step in steps[1:]:
        m = step.metrics
        assert m["reward/mean"] == pytest.approx(
            2 * m["reward/short_mean"] - m["reward/cats_mean"], abs=1e-12
        )
        # The part is a reward of its own, asked about the same completions: −|tokens − 4|/4.
        lengths = [sample.data["length"] for sample in step.samples]
        short = sum(-abs(n - 4) / 4 for n in lengths) / len(lengths)
        assert m["reward/short_mean"] == pytest.approx(short, abs=1e-12)


def test_a_sum_of_one_part_of_weight_one_trains_as_the_part_does(tiny_model: Path) -> None:
    only = {"kind": "weighted", "parts": [{"name": "short", "weight": 1.0, "reward": LENGTH}]}
    assert trained(tiny_model, config(reward=only))[1] == trained(tiny_model, config())[1]


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_under_its_name(garbage: float) -> None:
    def bad(*_: object) -> list[float]:
        return [0.0, garbage]

    texts = (["", ""], ["a", "b"], [1, 1])
    with pytest.raises(NonFiniteLoss, match="step 3: reward is"):
        judge(bad, *texts, step=3)
    with pytest.raises(NonFiniteLoss, match="step 3: reward cats is"):  # also with a weight of 0
        judge(WeightedSum({"cats": (0.0, bad)}), *texts, step=3)


def test_mean_and_spread_are_those_of_the_raw_scores() -> None:
    judged = judge(lambda *_: [1.0, 2.0, 6.0], [""] * 3, [""] * 3, [1] * 3, step=1)
    assert torch.equal(judged.scores, torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64))
    # mean 3; squares of −2, −1, 3 sum to 14, over n − 1 = 2: √7
    assert describe_rewards(judged) == pytest.approx({"reward/mean": 3.0, "reward/std": math.sqrt(7)})
    assert describe_rewards(judge(lambda *_: [1.0], [""], [""], [1], step=1))["reward/std"] == 0.0
