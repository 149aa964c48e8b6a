"""Held-out completions: means with their errors, and the exact KL of texts that no update has seen."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_core.answers import roll_out
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.evaluation import Evaluation, paired_difference, repeated_bigrams, summarise
from rlhf_core.held_out import evaluate
from rlhf_core.judgement import Judges
from rlhf_core.kl import divergences
from rlhf_core.order import generator
from rlhf_core.policies import LoraPolicy, new_policy
from rlhf_core.rewards import make_reward
from rlhf_core.update import fresh_state

PROMPTS = ("The cat", "A lovely", "Naïve")


def test_means_have_the_errors_of_means_over_prompts() -> None:
    evaluation = Evaluation(PROMPTS, ("a b a b", "a", ""), (1.0, 2.0, 6.0), (4, 2, 0), kl=(0.0, 3.0, 3.0))
    # Scores: mean 3, sd² = (4 + 1 + 9)/2 = 7. KL: mean 2, sd² = (4 + 1 + 1)/2 = 3, SE = sqrt(3/3).
    assert summarise(evaluation) == {
        "reward_mean": 3.0,
        "reward_se": pytest.approx(math.sqrt(7 / 3)),
        "length_mean": 2.0,
        "repeated_bigrams": pytest.approx(1 / 9),  # ab, ba, ab: one of three; the others have no pair
        "n": 3.0,
        "kl_sequence": 2.0,
        "kl_sequence_se": pytest.approx(1.0),
    }
    assert repeated_bigrams("A b a b") == pytest.approx(1 / 3)


def test_a_checkpoint_from_before_there_was_kl_is_summarised_without() -> None:
    assert "kl_sequence" not in summarise(Evaluation(PROMPTS, ("", "", ""), (0.0, 0.0, 0.0), (1, 1, 1)))


def test_a_difference_is_paired() -> None:
    before, after = (
        Evaluation(PROMPTS, ("", "", ""), scores, (1, 1, 1))
        for scores in ((0.0, 5.0, 10.0), (1.0, 6.0, 11.0))
    )
    assert paired_difference(before, after) == {"mean": 1.0, "se": 0.0, "n": 3.0}
    with pytest.raises(ValueError, match="same prompts"):
        paired_difference(before, after._replace(prompts=PROMPTS[::-1]))


def config() -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 2, "max_new_tokens": 6, "temperature": 0.7},
            "optimization": {"steps": 1},
        }
    )


def moved_policy(tiny_model: Path) -> LoraPolicy:
    policy = new_policy(str(tiny_model), config().model, seed=0)
    torch.manual_seed(1)
    for name, weight in policy.trainable_parameters().items():
        if "lora_B" in name:
            weight.data.normal_().mul_(0.2)
    return policy


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_the_kl_of_an_evaluation_is_the_plain_one(tiny_model: Path, micro_batch: Any) -> None:
    """Each text alone, whole logits in float64, up to and including the stop token."""
    policy, options = moved_policy(tiny_model), config()
    head = fresh_state(policy, options).value_head
    found = evaluate(
        policy, head, PROMPTS, Judges(make_reward(options.reward)), options, step=0, micro_batch=micro_batch
    )
    assert min(found.kl) > 1e-3
    random = [generator("evaluation", step=start, seed=0, device=torch.device("cpu")) for start in (0, 2)]
    rollouts = [
        roll_out(policy, texts, options, draw, step=0)
        for texts, draw in zip((PROMPTS[:2], PROMPTS[2:]), random, strict=True)
    ]
    expected = []
    for rollout, row in ((rollouts[0], 0), (rollouts[0], 1), (rollouts[1], 0)):
        length = int(rollout.response_mask[row].sum())
        ids = rollout.input_ids[row][rollout.attention_mask[row].bool()]
        logits = []
        for side in (policy.policy, policy.reference):
            with torch.no_grad(), side() as model:
                hidden = model.trunk(input_ids=ids[None], use_cache=False).last_hidden_state[
                    0, -length - 1 : -1
                ]
                logits.append(model.logits(hidden).double() / 0.7)
        expected.append(float(divergences(*logits).kl.sum()))
    assert found.kl == pytest.approx(expected, rel=1e-3, abs=1e-5)
