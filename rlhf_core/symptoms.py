"""Checks on a run's metrics, each silent while a metric it needs is absent; `diagnosis` names and explains them.

Where each threshold comes from stands in docs/algorithms.md.
"""

import math
from collections.abc import Callable
from statistics import fmean, median
from typing import NamedTuple

from rlhf_core.frontier import FEWEST_POINTS, fit_gao, points_of
from rlhf_core.history import History, Window

ENDS = 5  # steps at a run's start, and at its end
RECENT = 10
LEASHED, SLACK = 20, 50  # steps above, and below, the target
TREND_SPANS = (20, 40, 80)
RISING = 1.1  # the later half over the earlier
KL_TO_SHARE_OUT = 0.5  # nats per sequence: shares of less say nothing
RUNAWAY_GROWTH, RUNAWAY_TARGETS, RUNAWAY_NATS = 1.5, 3.0, 20.0
WARM_UP, WORSE_THAN_A_CONSTANT = 100, -0.05  # steps of the value head, and its explained variance
SURE = 2.0  # standard errors
SURE_OF_A_FALL = 3.0  # where many spans and steps are tried
BESIDE_PEAK, FEWEST_BESIDE = 0.15, 3  # of ln d, and points


class Symptom(NamedTuple):
    """What a check has found: a number past its threshold, over which steps, and what it was made of."""

    value: float
    threshold: float
    first_step: int
    last_step: int
    numbers: dict[str, float]


Check = Callable[[History], Symptom | None]


def over(window: Window, value: float, threshold: float, numbers: dict[str, float]) -> Symptom:
    """A symptom of a window's steps."""
    return Symptom(value, threshold, window.steps[0], window.steps[-1], numbers)


def mean_above(name: str, bound: float) -> Check:
    """The mean of the last RECENT steps."""

    def check(history: History) -> Symptom | None:
        recent = history.last(RECENT, name)
        if recent is None or recent[0].mean <= bound:
            return None
        return over(recent[0], recent[0].mean, bound, {f"mean {name}": recent[0].mean})

    return check


def median_above(name: str, bound: float) -> Check:
    """The median of the last RECENT steps, so that single steps may pass the bound."""

    def check(history: History) -> Symptom | None:
        recent = history.last(RECENT, name)
        if recent is None or (middle := median(recent[0].values)) <= bound:
            return None
        return over(
            recent[0], middle, bound, {f"median {name}": middle, f"max {name}": max(recent[0].values)}
        )

    return check


def share_above(name: str, bound: float) -> Check:
    """The mean share of the KL over the last RECENT steps, where there is KL to share out."""

    def check(history: History) -> Symptom | None:
        recent = history.last(RECENT, name, "kl/sequence")
        if recent is None or recent[1].mean < KL_TO_SHARE_OUT or recent[0].mean <= bound:
            return None
        share, kl = recent
        return over(share, share.mean, bound, {f"mean {name}": share.mean, "mean kl/sequence": kl.mean})

    return check


def negative_kl(history: History) -> Symptom | None:
    """The mean of Σ k1 below −2 SE: it estimates a KL, and no KL is negative."""
    recent = history.last(ENDS, "kl/k1_sequence", "kl/k1_sequence_se")
    if recent is None:
        return None
    k1, errors = recent
    se = math.hypot(*errors.values) / len(errors.values)
    if k1.mean >= -SURE * se:
        return None
    return over(k1, k1.mean, -SURE * se, {"mean kl/k1_sequence": k1.mean, "its standard error": se})


def kl_off_target(history: History) -> Symptom | None:
    """KL above twice its target, or below half of it and not on its way; what runs away is another finding."""
    names = ("kl/sequence", "kl/target")
    for steps, bound, sign in ((LEASHED, 2.0, 1), (SLACK, 0.5, -1)):
        recent = history.last(steps, *names)
        if recent is None:
            continue
        kl, target = recent
        ratio = kl.mean / target.mean
        early, late = kl.halves()
        on_its_way = sign < 0 and late.mean > RISING * early.mean
        if sign * (ratio - bound) > 0 and not on_its_way and kl_running_away(history) is None:
            return over(kl, ratio, bound, {"mean kl/sequence": kl.mean, "mean kl/target": target.mean})
    return None


def kl_running_away(history: History) -> Symptom | None:
    """KL far out and still growing: half as much again as RECENT steps ago."""
    recent = history.last(2 * RECENT, "kl/sequence")
    if recent is None:
        return None
    early, late = recent[0].halves()
    targets = history.last(RECENT, "kl/target")
    bound = RUNAWAY_TARGETS * targets[0].mean if targets else RUNAWAY_NATS
    if late.mean <= bound or late.mean < RUNAWAY_GROWTH * early.mean:
        return None
    numbers = {"mean kl/sequence": late.mean, f"mean of the {RECENT} steps before": early.mean}
    return over(late, late.mean, bound, numbers)


def gold_reward_falling(history: History) -> Symptom | None:
    """The later half of a span against the earlier: training reward up, gold reward down, each beyond 3 SE."""
    for span in TREND_SPANS:
        recent = history.last(span, "reward/mean", "reward/gold_mean")
        if recent is None:
            return None
        (proxy, proxy_se), (gold, gold_se) = (_change(*window.halves()) for window in recent)
        if proxy > SURE_OF_A_FALL * proxy_se and gold < -SURE_OF_A_FALL * gold_se:
            numbers = {"change of reward/mean": proxy, "change of reward/gold_mean": gold}
            return over(recent[1], gold, -SURE_OF_A_FALL * gold_se, numbers)
    return None


def held_out_reward_falling(history: History) -> Symptom | None:
    """The last evaluation below the best one beyond 2 SE, while the training reward rose between them."""
    evaluated, errors = history.all("eval/reward_mean", "eval/reward_se")
    if len(evaluated.steps) < 2:
        return None
    best = max(range(len(evaluated.steps)), key=evaluated.values.__getitem__)
    fall = evaluated.values[-1] - evaluated.values[best]
    threshold = -SURE * math.hypot(errors.values[-1], errors.values[best])
    (proxy,) = history.all("reward/mean")
    before, after = (_up_to(proxy, evaluated.steps[index]) for index in (best, -1))
    if fall >= threshold or before is None or after is None:
        return None
    rise, rise_se = _change(before, after)
    if rise <= SURE * rise_se:
        return None
    numbers = {"change of eval/reward_mean": fall, "change of reward/mean": rise}
    return Symptom(fall, threshold, evaluated.steps[best], evaluated.steps[-1], numbers)


def length_drift(history: History) -> Symptom | None:
    """Completions half as long again as at the start, or two thirds as long."""
    found = _start_and_end(history, "length/mean")
    if found is None:
        return None
    start, end, sure = found
    ratio = end.mean / start.mean
    bound = 1.5 if ratio > 1 else 1 / 1.5
    if not sure or 1 / 1.5 < ratio < 1.5:
        return None
    return _since_start("length/mean", start, end, ratio, bound)


def entropy_collapse(history: History) -> Symptom | None:
    """A fifth of the entropy at the start, or less."""
    return _fallen_below(history, "policy/entropy", share=0.2, start_at_least=0.0)


def eos_lost(history: History) -> Symptom | None:
    """Completions that ended by themselves, and hardly do any more."""
    return _fallen_below(history, "length/eos_rate", share=0.1, start_at_least=0.1)


def repetition(history: History) -> Symptom | None:
    """Three of ten word pairs occurred before in their text, and two of ten more than at the start."""
    found = history.ends(ENDS, "text/repeated_bigrams")
    if found is None:
        return None
    start, end = found
    bound = max(0.3, start.mean + 0.2)
    return _since_start("text/repeated_bigrams", start, end, end.mean, bound) if end.mean > bound else None


def value_useless(history: History) -> Symptom | None:
    """After its warm-up the value head does worse than a constant, whose explained variance is 0."""
    name = "value/explained_variance"
    recent = history.last(LEASHED, name)
    if recent is None or len(history.all(name)[0].steps) < WARM_UP or recent[0].mean >= WORSE_THAN_A_CONSTANT:
        return None
    return over(recent[0], recent[0].mean, WORSE_THAN_A_CONSTANT, {f"mean {name}": recent[0].mean})


def reward_constant(history: History) -> Symptom | None:
    """Every completion of the last steps got the same reward."""
    recent = history.last(RECENT, "reward/mean", "reward/std")
    if recent is None:
        return None
    means, deviations = (series.values for series in recent)
    rounding = 1e-9 * max(1.0, abs(recent[0].mean))  # the deviation of equal numbers need not be 0
    if max(deviations) > rounding or max(means) - min(means) > rounding:
        return None
    return over(recent[0], 0.0, 0.0, {"reward/mean": recent[0].mean, "max reward/std": 0.0})


def past_the_peak(history: History) -> Symptom | None:
    """d = √KL beyond the fitted peak's interval, and the reward lower than around the peak beyond 3 SE."""
    series = (points_of(history.rows, name) for name in ("gold", "held_out_gold", "held_out"))
    points = next((found for found in series if len(found) >= FEWEST_POINTS), [])
    fit = fit_gao(points)
    if fit is None or fit.peak is None:
        return None
    peak = fit.peak
    now = points[-min(RECENT, len(points) // 4) :]
    d = fmean(point.d for point in now)
    around = [point for point in points if abs(math.log(max(point.d, 1e-9) / peak.d)) < BESIDE_PEAK]
    if d <= peak.high or min(len(now), len(around)) < FEWEST_BESIDE:
        return None
    change = fmean(point.reward for point in now) - fmean(point.reward for point in around)
    if change >= -SURE_OF_A_FALL * fit.noise * math.sqrt(1 / len(now) + 1 / len(around)):
        return None
    numbers = {
        "fitted peak of √KL": peak.d,
        "its 95 % limit": peak.high,
        "change of the reward since": change,
    }
    return Symptom(d, peak.high, now[0].step, now[-1].step, numbers)


def _change(early: Window, late: Window) -> tuple[float, float]:
    """Later mean − earlier mean, and its standard error."""
    return late.mean - early.mean, math.hypot(early.se, late.se)


def _up_to(window: Window, step: int) -> Window | None:
    """The last ENDS steps that are not after `step`; None where there are fewer."""
    count = sum(at <= step for at in window.steps)
    if count < ENDS:
        return None
    return Window(window.steps[count - ENDS : count], window.values[count - ENDS : count])


def _start_and_end(history: History, name: str) -> tuple[Window, Window, bool] | None:
    """A metric at both ends of a run, and whether they differ beyond 2 SE."""
    found = history.ends(ENDS, name)
    if found is None:
        return None
    change, se = _change(*found)
    return *found, abs(change) > SURE * se


def _fallen_below(history: History, name: str, *, share: float, start_at_least: float) -> Symptom | None:
    found = _start_and_end(history, name)
    if found is None:
        return None
    start, end, sure = found
    if not sure or start.mean <= start_at_least or end.mean > share * start.mean:
        return None
    return _since_start(name, start, end, end.mean, share * start.mean)


def _since_start(name: str, start: Window, end: Window, value: float, threshold: float) -> Symptom:
    numbers = {f"{name} at the start": start.mean, f"{name} now": end.mean}
    return Symptom(value, threshold, start.steps[0], end.steps[-1], numbers)
