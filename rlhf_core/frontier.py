"""What a drift of d = √KL(π ‖ ref) has bought: Gao's law fitted to a run, and its peak.

Gao, Schulman, Hilton 2022 (arXiv 2210.10760), KL in nats per sequence: reinforcement learning
R(d) − R(0) = d(a − b ln d). The coefficients belong to one set-up. numpy in float64, without torch.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_core.history import Row, usable
from rlhf_core.student_t import t_quantile

LEVEL = 0.95
FARTHEST_PEAK = 300.0  # of ln d*: whatever is farther is no number to show
FEWEST_POINTS = 8  # three coefficients and five degrees of freedom
ROUNDING = 1e-12  # of the largest reward: means of equal rewards differ by less


class Point(NamedTuple):
    """One step's mean reward at its exact sequence KL."""

    step: int
    kl: float  # nats per sequence
    reward: float

    @property
    def d(self) -> float:
        """√KL."""
        return math.sqrt(self.kl)


class Peak(NamedTuple):
    """Where the fitted law is highest, with the limits of a 95 % interval of d."""

    d: float
    low: float
    high: float
    reward: float


class Fit(NamedTuple):
    """R(d) = r0 + d(a − b ln d) by least squares; `peak` is None unless b > 0 with confidence."""

    r0: float
    a: float
    b: float
    a_se: float
    b_se: float
    noise: float  # standard deviation of a point around the law
    peak: Peak | None

    def reward(self, d: float) -> float:
        """The law at d."""
        return self.r0 + gao_gain(d, self.a, self.b)


# A reward and the KL of the completions that it judged; the training reward is the proxy.
SERIES = {
    "proxy": ("reward/mean", "kl/sequence"),
    "gold": ("reward/gold_mean", "kl/sequence"),
    "held_out": ("eval/reward_mean", "eval/kl_sequence"),
    "held_out_gold": ("eval/gold_mean", "eval/kl_sequence"),
}


def points_of(rows: Iterable[Row], series: str) -> list[Point]:
    """The steps that report both numbers of SERIES, by step."""
    reward, kl = SERIES[series]
    found = [
        Point(row.step, row.metrics[kl], row.metrics[reward])
        for row in rows
        if usable(row, kl, reward) and row.metrics[kl] >= 0
    ]
    return sorted(found)


def gao_gain(d: float, a: float, b: float) -> float:
    """R(d) − R(0) of reinforcement learning: d(a − b ln d), 0 at 0."""
    return d * (a - b * math.log(d)) if d > 0 else 0.0


def gao_peak(a: float, b: float) -> float:
    """The d where `gao_gain` is highest, for b > 0: a − b ln d − b = 0 there, and the gain is b·d."""
    return math.exp(a / b - 1)


def fit_gao(points: Sequence[Point]) -> Fit | None:
    """Least squares over r0, a and b, which are linear in the law; None where the points do not tell them apart.

    That includes one reward, up to rounding, at every d.

    Standard errors take the residuals as independent. The peak's interval is that of ln d* = a/b − 1 by the delta
    method.
    """
    if len(points) < FEWEST_POINTS:
        return None
    d = np.array([point.d for point in points])
    log_d = np.log(np.where(d > 0, d, 1.0))
    columns = np.stack([np.ones_like(d), d, -d * log_d], axis=1)
    rewards = np.array([point.reward for point in points])
    if np.ptp(rewards) <= ROUNDING * np.abs(rewards).max():
        return None
    solution, _, rank, _ = np.linalg.lstsq(columns, rewards, rcond=None)
    if rank < columns.shape[1]:
        return None
    degrees = len(points) - columns.shape[1]
    noise = float(np.linalg.norm(rewards - columns @ solution)) / math.sqrt(degrees)
    inverse = np.linalg.pinv(columns)
    covariance = noise**2 * inverse @ inverse.T
    r0, a, b = (float(value) for value in solution)
    _, a_se, b_se = (math.sqrt(max(float(value), 0.0)) for value in covariance.diagonal())
    fit = Fit(r0, a, b, a_se, b_se, noise, None)
    t = t_quantile(LEVEL, degrees)
    if not b > t * b_se or abs(a / b) > FARTHEST_PEAK:
        return fit
    slope = np.array([0.0, 1.0, -a / b]) / b  # of ln d* = a/b − 1
    reach = t * math.sqrt(max(float(slope @ covariance @ slope), 0.0))
    at = gao_peak(a, b)
    low, high = (at * math.exp(side * min(reach, FARTHEST_PEAK)) for side in (-1, 1))
    return fit._replace(peak=Peak(at, low, high, reward=fit.reward(at)))
