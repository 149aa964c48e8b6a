"""Shaping a batch of scores, derived by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.config.scores import ScoresConfig
from rlhf_core.score_shaping import Shaped, describe_shaping, shape_scores

SCORES = torch.tensor([1.0, 3.0, 3.0, 4.0], dtype=torch.float64)
ENDED = torch.tensor([True, False, True, True])


def shaped(**options: Any) -> Shaped:
    return shape_scores(SCORES, ENDED, **ScoresConfig(**options).model_dump())


def test_by_default_nothing_changes() -> None:
    result = shaped()
    assert torch.equal(result.scores, SCORES)
    assert (float(result.std), float(result.clipped)) == (1.0, 0.0)
    assert describe_shaping(result, ScoresConfig()) == {}


def test_each_alone() -> None:
    assert shaped(missing_eos_penalty=1.0).scores.tolist() == [1.0, 2.0, 3.0, 4.0]  # only the second was cut
    assert shaped(scale=0.5).scores.tolist() == [0.5, 1.5, 1.5, 2.0]
    clipped = shaped(clip=3.0)
    assert clipped.scores.tolist() == [1.0, 3.0, 3.0, 3.0]
    assert float(clipped.clipped) == 0.25  # a score at the bound is where it was


def test_penalty_then_whitening_then_scale_then_clip() -> None:
    # less the penalty: (1, 2, 3, 4), mean 2.5, variance 5/3; numerics T10: ∓1.161895, ∓.38729833
    # twice that: ∓2.32379, ∓.77459667; clipped at ±1: both ends
    result = shaped(missing_eos_penalty=1.0, whiten=True, scale=2.0, clip=1.0)
    assert result.scores.tolist() == pytest.approx([-1.0, -0.77459667, 0.77459667, 1.0], abs=1e-7)
    assert float(result.std) == pytest.approx(math.sqrt(5 / 3))
    assert float(result.clipped) == 0.5


def test_whitened_equal_scores_are_zeros() -> None:
    equal = shape_scores(torch.full((4,), 0.1), ENDED, **ScoresConfig(whiten=True).model_dump())
    assert equal.scores.tolist() == [0.0] * 4


def test_what_was_asked_for_is_reported() -> None:
    config = ScoresConfig(missing_eos_penalty=1.0, whiten=True, scale=2.0, clip=3.0)
    metrics = describe_shaping(shape_scores(SCORES, ENDED, **config.model_dump()), config)
    assert metrics == pytest.approx(
        {
            "reward/shaped_mean": 0.0,
            "reward/shaped_std": 2.0,
            "reward/whitening_std": math.sqrt(5 / 3),
            "reward/clip_fraction": 0.0,
        },
        abs=1e-7,
    )
    only_scale = ScoresConfig(scale=2.0)
    one = shape_scores(SCORES[:1], ENDED[:1], **only_scale.model_dump())
    assert describe_shaping(one, only_scale) == {"reward/shaped_mean": 2.0, "reward/shaped_std": 0.0}


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"clip": 0.0}, {"missing_eos_penalty": -1.0}])
def test_shaping_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        ScoresConfig(**wrong)  # type: ignore[arg-type]


def test_one_completion_a_step_cannot_be_whitened() -> None:
    with pytest.raises(ValidationError, match="a single score is whitened to 0"):
        PPOConfig.model_validate(
            {
                "model": {"name": "tiny"},
                "data": {"prompts": ["The"]},
                "reward": {"kind": "sentiment"},
                "scores": {"whiten": True},
                "rollout": {"batch_size": 1},
                "optimization": {"steps": 1, "minibatches": 1},
            }
        )


def test_the_demo_asks_for_none_of_it() -> None:
    job = json.loads((Path(__file__).parents[2] / "examples" / "demo_job.json").read_text())
    assert PPOConfig.model_validate(job["config"]).scores == ScoresConfig()
