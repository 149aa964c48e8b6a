"""Gao's law against its closed forms (T24) and simulated noise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.frontier import (
    FEWEST_POINTS,
    Point,
    fit_gao,
    gao_gain,
    gao_peak,
    points_of,
)
from rlhf_core.history import Row

A, B = 0.6, 0.2
PEAK = math.exp(2)  # a/b − 1 = 2


def law(ds, *, a=A, b=B, r0=0.0, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    return [Point(i, d * d, r0 + gao_gain(d, a, b) + noise * random.normal()) for i, d in enumerate(ds, 1)]


def test_t24_the_peak_of_the_law():
    assert gao_peak(A, B) == pytest.approx(7.3890561, abs=5e-8)
    assert gao_peak(A, B) ** 2 == pytest.approx(54.59815, abs=5e-6)
    assert gao_gain(PEAK, A, B) == pytest.approx(1.4778112, abs=5e-8)  # b·d*


@given(
    a=st.floats(0.05, 3),
    b=st.floats(0.01, 1),
    r0=st.floats(-5, 5),
    reach=st.floats(1.5, 9),
    n=st.integers(8, 40),
)
def test_t24_points_on_the_law_give_back_its_coefficients(a, b, r0, reach, n):
    fit = fit_gao(law(np.linspace(0, reach, n), a=a, b=b, r0=r0))
    assert (fit.a, fit.b, fit.r0) == (
        pytest.approx(a, abs=1e-8),
        pytest.approx(b, abs=1e-8),
        pytest.approx(r0, abs=1e-8),
    )
    assert fit.reward(reach) == pytest.approx(r0 + gao_gain(reach, a, b), abs=1e-8)


def test_the_fitted_peak_and_its_interval():
    peak = fit_gao(law(np.linspace(0, 9, 60), r0=1.0, noise=0.05)).peak
    assert peak.low < PEAK < peak.high
    assert peak.d == pytest.approx(PEAK, rel=0.1)
    assert peak.reward == pytest.approx(1 + 0.2 * PEAK, abs=0.05)


def test_intervals_of_the_peak_cover_it_as_often_as_they_say():
    """800 draws: the share covered has a standard error of .008 around .95."""
    found = [fit_gao(law(np.linspace(0, 9, 40), noise=0.1, seed=seed)).peak for seed in range(800)]
    covered = [peak.low < PEAK < peak.high for peak in found if peak is not None]
    assert len(covered) == 800
    assert np.mean(covered) == pytest.approx(0.95, abs=0.025)


def test_no_peak_where_the_curvature_is_not_sure():
    """Points on a straight line (b = 0): the 95 % test lets b > 0 pass in 2.5 % of the draws, one side of two."""
    found = [fit_gao(law(np.linspace(0, 3, 30), b=0.0, noise=0.05, seed=seed)) for seed in range(500)]
    assert np.mean([fit.peak is not None for fit in found]) == pytest.approx(0.025, abs=0.02)
    assert fit_gao(law(np.linspace(0, 3, 30), b=-0.1)).peak is None  # convex: it has no peak


def test_too_few_points_or_one_kl_give_no_fit():
    assert fit_gao(law(np.linspace(0, 3, FEWEST_POINTS - 1))) is None
    assert fit_gao(law([2.0] * 20)) is None
    assert fit_gao(law([0.0] * 20)) is None


@pytest.mark.parametrize("reward", [0.0, 1.0, -0.3, 7e4])
def test_one_reward_at_every_d_is_no_law(reward):
    """Not even where the last bit of its mean wobbles."""
    points = law(np.linspace(0, 3, 30), a=0.0, b=0.0, r0=reward)
    assert fit_gao(points) is None
    wobbling = [p._replace(reward=p.reward + np.spacing(reward) * (-1) ** p.step) for p in points]
    assert reward == 0 or fit_gao(wobbling) is None


def test_a_point_needs_both_numbers_of_its_series():
    rows = [
        Row(2, {"reward/mean": 1.0, "kl/sequence": 4.0, "reward/gold_mean": 0.5}),
        Row(1, {"reward/mean": 0.0, "kl/sequence": 0.0}),
        Row(3, {"reward/mean": 2.0, "eval/reward_mean": 3.0}),
    ]
    assert points_of(rows, "proxy") == [Point(1, 0.0, 0.0), Point(2, 4.0, 1.0)]
    assert points_of(rows, "gold") == [Point(2, 4.0, 0.5)]
    assert points_of(rows, "held_out") == []
    assert Point(2, 4.0, 1.0).d == 2
