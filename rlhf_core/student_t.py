"""Quantiles of Student's t distribution, for confidence intervals. No dependency but the standard library."""

import math
from functools import lru_cache
from statistics import NormalDist

MOST_SUMMED = 1000  # degrees of freedom above which the expansion is as good as the sum
HALVINGS = 64


@lru_cache(maxsize=1024)
def t_quantile(level: float, degrees: int) -> float:
    """t > 0 with P(|T| ≤ t) = `level` for T with `degrees` degrees of freedom, to 1e-10 of its size.

    Args:
        level: of the two-sided interval, between 0 and 1: 0.95 gives the 97.5 % quantile.
        degrees: degrees of freedom, 1 or more.

    Raises:
        ValueError: no such distribution or level.
    """
    if not 0 < level < 1 or degrees < 1:
        raise ValueError(f"no t quantile for level {level} and {degrees} degrees of freedom")
    if degrees > MOST_SUMMED:
        return _expanded(level, degrees)
    low, high = 0.0, math.pi / 2  # the angle whose tangent is t/√degrees
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _probability_within(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _probability_within(angle: float, degrees: int) -> float:
    """P(|T| ≤ √degrees · tan(angle)): the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun (1964)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    total, term = 0.0, cosine if odd else 1.0
    for power in range(odd, degrees - 1, 2):  # term = coefficient · cosine^power
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    if not odd:
        return sine * total
    return 2 / math.pi * (angle + sine * total)


def _expanded(level: float, degrees: int) -> float:
    """The expansion of t in 1/degrees around the normal quantile: 26.7.5 of the same."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))
