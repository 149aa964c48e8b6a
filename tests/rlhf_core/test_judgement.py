"""Rewards in the training loop: what reaches the update, and what is only reported."""

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlhf_core import ppo
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.config.rewards import KeywordReward
from rlhf_core.errors import NonFiniteLoss, RewardError
from rlhf_core.evaluation import Evaluation, paired_difference, summarise
from rlhf_core.judgement import Judges, describe_rewards, judge
from rlhf_core.policies import new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.rewards import WeightedSum, make_reward
from rlhf_core.update import fresh_state, update_policy

pytestmark = pytest.mark.usefixtures("no_shape_checks")
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
    """Every step of a run, and its last weights to the bit. A third of the vocabulary ends a completion."""
    policy = new_policy(str(model), options.model, seed=0)
    policy.codec = replace(policy.codec, eos_ids=frozenset(range(0, 400, 3)))
    state = fresh_state(policy, options)
    steps = train(
        policy,
        state,
        options,
        prompts=PROMPTS,
        eval_prompts=PROMPTS[:2],
        reward=make_reward(options.reward),
        gold=None if (gold := options.evaluation.gold_reward) is None else make_reward(gold),
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
        judge(Judges(bad), *texts, step=3)
    with pytest.raises(NonFiniteLoss, match="step 3: reward cats is"):  # also with a weight of 0
        judge(Judges(WeightedSum({"cats": (0.0, bad)})), *texts, step=3)


def scores_of(values: list[float]) -> Callable[..., list[float]]:
    return lambda *_: values


def test_mean_and_spread_are_those_of_the_raw_scores() -> None:
    texts = ["a", "b", "c"]
    judged = judge(Judges(scores_of([1.0, 2.0, 6.0])), texts, texts, [1] * 3, step=1)
    assert judged.scores.tolist() == [1.0, 2.0, 6.0]
    # mean 3; squares of −2, −1, 3 sum to 14, over n − 1 = 2: √7
    assert describe_rewards(judged, texts) == pytest.approx({"reward/mean": 3.0, "reward/std": math.sqrt(7)})
    one = judge(Judges(scores_of([1.0])), ["a"], ["a"], [1], step=1)
    assert describe_rewards(one, ["a"])["reward/std"] == 0.0


def test_the_error_of_the_gold_mean_is_clustered_by_prompt() -> None:
    prompts = ["a", "a", "b", "c"]
    judges = Judges(scores_of([0.0] * 4), scores_of([1.0, 3.0, 2.0, 6.0]))
    metrics = describe_rewards(judge(judges, prompts, prompts, [1] * 4, step=1), prompts)
    # Mean 12/4 = 3. Clusters x = 4, 2, 6 with T = 2, 1, 1: x − 3T = −2, −1, 3; SE² = 3/2 · 14/16 = 1.3125
    assert metrics["reward/gold_mean"] == 3.0
    assert metrics["reward/gold_se"] == pytest.approx(math.sqrt(1.3125))
    judges = Judges(scores_of([0.0] * 2), scores_of([1.0, 3.0]))
    alone = describe_rewards(judge(judges, ["a", "a"], ["x", "y"], [1, 1], step=1), ["a", "a"])
    assert "reward/gold_se" not in alone  # one prompt says nothing about its like


def test_a_gold_reward_is_watched_and_changes_no_weight(tiny_model: Path) -> None:
    """Its mean is that of the same judge on the same completions; every other number is as it was without it."""
    evaluation = {"gold_reward": CATS, "every_steps": 1}
    watched, weights = trained(tiny_model, config(evaluation=evaluation))
    alone, same = trained(tiny_model, config(evaluation={"every_steps": 1}))
    assert weights == same
    for seen, unseen in zip(watched, alone, strict=True):
        gold = (
            {"reward/gold_mean", "reward/gold_se", "eval/gold_mean", "eval/gold_se"} if seen.step else set()
        )
        assert seen.metrics.keys() - unseen.metrics.keys() == gold
        assert seen.metrics | unseen.metrics == seen.metrics
        assert seen.evaluation is not None
        assert unseen.evaluation is not None
        completions = seen.evaluation.completions
        assert list(seen.evaluation.gold) == make_reward(KeywordReward(keywords=("cat",)))(
            [], completions, []
        )
        assert seen.evaluation._replace(gold=()) == unseen.evaluation


def test_a_gold_reward_that_fails_is_named() -> None:
    texts = (["", ""], ["a", "b"], [1, 1])
    with pytest.raises(RewardError, match="gold reward: the reward function must return a list of 2"):
        judge(Judges(scores_of([0.0] * 2), scores_of([])), *texts, step=1)
    judges = Judges(scores_of([0.0] * 2), scores_of([0.0, math.nan]))
    with pytest.raises(NonFiniteLoss, match="gold reward of the evaluation is NaN"):
        judge(judges, *texts, step=1, during=" of the evaluation")


def test_both_evaluations_are_compared_by_the_gold_reward_too() -> None:
    before = Evaluation(("a", "b"), ("x", "y"), (0.0, 0.0), (1, 1), (1.0, 2.0))
    after = before._replace(scores=(1.0, 1.0), gold=(0.0, 3.0))
    # differences −1 and 1: mean 0, sd √2, over √2: 1
    assert paired_difference(before, after, of="gold") == pytest.approx({"mean": 0.0, "se": 1.0, "n": 2.0})
    assert paired_difference(before, after)["mean"] == 1.0
    summary = summarise(before)
    assert (summary["gold_mean"], summary["gold_se"]) == pytest.approx((1.5, 0.5))
    assert "gold_mean" not in summarise(before._replace(gold=()))


def shaped_by_hand(raw: float, ended: bool, *, mean: float, std: float) -> float:
    less = raw - (0.0 if ended else 0.5)
    return min(max(3.0 * (less - mean) / std, -2.0), 2.0)


def test_the_kl_is_taken_from_the_shaped_score(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With γ = λ = 1 the first return is Σ r_t = shaped score − β Σ k1 of each completion."""
    seen: list[tuple[list[float], list[bool]]] = []

    def spy(policy: Any, state: Any, experience: Any, targets: Any, *args: Any, **options: Any) -> Any:
        seen.append((targets.returns[:, 0].tolist(), experience.rollout.ended.tolist()))
        return update_policy(policy, state, experience, targets, *args, **options)

    monkeypatch.setattr(ppo, "update_policy", spy)
    shaping = {"missing_eos_penalty": 0.5, "whiten": True, "scale": 3.0, "clip": 2.0}
    options = config(
        scores=shaping,
        kl={"beta": 0.1},
        advantages={"gae_lambda": 1.0},
        rollout={"batch_size": 8, "max_new_tokens": 3},
    )
    steps, _ = trained(tiny_model, options)
    assert any(abs(sample.data["k1"]) > 0.01 for sample in steps[2].samples)
    for step, (returns, ended) in zip(steps[1:], seen, strict=True):
        assert {True, False} == set(ended)
        raw = [sample.data["reward"] for sample in step.samples]
        less = [score - (0.0 if over else 0.5) for score, over in zip(raw, ended, strict=True)]
        spread = {"mean": statistics.mean(less), "std": statistics.stdev(less)}
        shaped = [shaped_by_hand(score, over, **spread) for score, over in zip(raw, ended, strict=True)]
        assert max(map(abs, shaped)) == 2.0  # the clip bites
        charged = [score - 0.1 * s.data["k1"] for score, s in zip(shaped, step.samples, strict=True)]
        assert returns == pytest.approx(charged, abs=1e-5)
        m = step.metrics
        assert m["reward/mean"] == pytest.approx(statistics.mean(raw))
        assert m["reward/shaped_mean"] == pytest.approx(statistics.mean(shaped), abs=1e-6)
        assert m["reward/adjusted_mean"] == pytest.approx(statistics.mean(charged), abs=1e-6)


def test_a_scale_is_a_weight_of_the_reward(tiny_model: Path) -> None:
    doubled = {"kind": "weighted", "parts": [{"name": "short", "weight": 2.0, "reward": LENGTH}]}
    scaled, weights = trained(tiny_model, config(scores={"scale": 2.0}))
    weighted, same = trained(tiny_model, config(reward=doubled))
    assert weights == same
    assert scaled[1].metrics["reward/shaped_mean"] == weighted[1].metrics["reward/mean"]
    assert "reward/shaped_mean" not in weighted[1].metrics


def test_a_spread_that_no_float_holds_is_refused(tiny_model: Path) -> None:
    """Whitening would divide by infinity, and call all scores equal."""
    huge = {"kind": "weighted", "parts": [{"name": "short", "weight": 1e200, "reward": LENGTH}]}
    with pytest.raises(NonFiniteLoss, match="shaped reward is infinite"):
        trained(tiny_model, config(reward=huge, scores={"whiten": True}))
