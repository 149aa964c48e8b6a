"""Learning rates and interpolation as functions of the step alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.config.ppo import PPOConfig
from rlhf_core.schedules import SHAPES, between, learning_rate_factor
from rlhf_core.update import fresh_state, set_learning_rates
from tests.rlhf_core.test_fixed_points import TabularPolicy


@pytest.mark.parametrize(
    ("shape", "warmup_steps", "factors"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 2, [1 / 2, 1, 1, 1]),
        ("linear", 0, [1, 3 / 4, 1 / 2, 1 / 4]),
        ("linear", 2, [1 / 2, 1, 1, 1 / 2]),  # then 1 − 0/2, 1 − 1/2
        ("cosine", 0, [1, (1 + 2**-0.5) / 2, 1 / 2, (1 - 2**-0.5) / 2]),  # cos 0, π/4, π/2, 3π/4
        ("cosine", 1, [1, 1, 3 / 4, 1 / 4]),  # then cos 0, π/3, 2π/3 = 1, ½, −½
        ("linear", 3, [1 / 3, 2 / 3, 1, 1]),  # one step is left: 1 − 0/1
    ],
)
def test_learning_rates_of_four_steps(shape: str, warmup_steps: int, factors: list[float]) -> None:
    found = [learning_rate_factor(i, shape=shape, warmup_steps=warmup_steps, steps=4) for i in range(4)]
    assert found == pytest.approx(factors, abs=1e-15)


@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 500), st.data())
def test_every_step_has_a_positive_rate_that_rises_once_and_then_never(
    shape: str, steps: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, steps - 1))
    found = [learning_rate_factor(i, shape=shape, warmup_steps=warmup, steps=steps) for i in range(steps)]
    assert all(0 < factor <= 1 for factor in found)
    assert found[:warmup] == sorted(found[:warmup])
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert found[warmup] == 1


@given(st.sampled_from(["linear", "cosine"]), st.floats(0, 10), st.floats(0, 10), st.integers(1, 99))
def test_between_begins_and_ends_exactly(shape: str, start: float, end: float, over: int) -> None:
    found = [between(start, end, shape=shape, done=done, over=over) for done in (0, over, over + 7)]
    assert found == [start, end, end]


def test_both_rates_of_the_optimizer_follow_the_schedule() -> None:
    options = PPOConfig.model_validate(
        {
            "model": {"name": "tabular"},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},
            "optimization": {
                "steps": 6,
                "learning_rate": 0.5,
                "value_learning_rate": 2.0,
                "learning_rate_schedule": "linear",
                "warmup_steps": 2,
            },
        }
    )
    state = fresh_state(TabularPolicy([[0.5, 0.5]]), options)
    rates = []
    for done in range(6):
        state.step = done
        set_learning_rates(state, options)
        rates.append(tuple(group["lr"] for group in state.optimizer.param_groups))
    # ½ and 1 of warm-up, then 1, ¾, ½, ¼ over the other four
    assert rates == [(0.25, 1.0), (0.5, 2.0), (0.5, 2.0), (0.375, 1.5), (0.25, 1.0), (0.125, 0.5)]
