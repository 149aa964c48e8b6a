"""Quantiles of Student's t against a table of 40-digit arithmetic, closed forms and laws."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.student_t import MOST_SUMMED, _expanded, t_quantile

# mpmath, 40 digits: the root t of betainc(ν/2, 1/2, 0, ν/(ν + t²), regularized) = .05
TABLE = {
    1: 12.7062047361746933,
    2: 4.30265272974946179,
    3: 3.18244630528370844,
    4: 2.77644510519779349,
    5: 2.57058183563631478,
    10: 2.22813885198627422,
    30: 2.04227245630123789,
    63: 1.99834054252074118,
    120: 1.97993040508244046,
    255: 1.96931056984987484,
    1000: 1.96233908082640810,
    1001: 1.96233670528087954,
    10_000: 1.96020123989062588,
    100_000: 1.95998770753460926,
}


@pytest.mark.parametrize(("degrees", "t"), TABLE.items())
def test_the_table_of_the_95_percent_interval(degrees, t):
    assert t_quantile(0.95, degrees) == pytest.approx(t, rel=1e-10)


@given(st.floats(0.01, 0.9999))
def test_one_and_two_degrees_have_closed_forms(level):
    # ν = 1 is Cauchy: P(|T| ≤ t) = 2/π · atan t; ν = 2: P(|T| ≤ t) = t/√(2 + t²)
    assert t_quantile(level, 1) == pytest.approx(math.tan(math.pi / 2 * level), rel=1e-9)
    assert t_quantile(level, 2) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-9)


@given(st.floats(0.01, 0.999999), st.integers(1, 3000))
def test_it_shrinks_with_the_degrees_towards_the_normal_quantile_and_grows_with_the_level(level, degrees):
    found = t_quantile(level, degrees)
    assert found > t_quantile(level, degrees + 1) > NormalDist().inv_cdf((1 + level) / 2)
    assert found > t_quantile(level * 0.999, degrees)


@given(st.floats(0.01, 0.999999))
def test_the_sum_and_the_expansion_meet(level):
    assert t_quantile(level, MOST_SUMMED) == pytest.approx(_expanded(level, MOST_SUMMED), rel=1e-10)


@pytest.mark.parametrize(("level", "degrees"), [(0.0, 5), (1.0, 5), (0.95, 0)])
def test_what_has_no_quantile_is_refused(level, degrees):
    with pytest.raises(ValueError, match="no t quantile"):
        t_quantile(level, degrees)
