"""Every rule against every series: each is fired by its own series alone, and none by a healthy run."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rlhf_core.diagnosis import RULES, diagnose
from rlhf_core.frontier import gao_gain
from rlhf_core.history import Row
from tests.rlhf_core.runs import healthy
from tests.rlhf_core.test_fixed_points import BETA, REFERENCE, SCORES, TabularPolicy, config, run

pytestmark = pytest.mark.usefixtures("no_shape_checks")
STEPS = 120
DEMO = [
    Row(row.pop("step"), row) for row in json.loads((Path(__file__).parent / "demo_metrics.json").read_text())
]  # of `make demo`: SmolLM2-135M, LoRA, 14 steps of 24 completions


def sick(change, *, steps=STEPS, seed=0):
    """A healthy run in which `change(share of the run, metrics)` gives other numbers to some metrics."""
    return [
        Row(row.step, {**row.metrics, **change(row.step / steps, row.metrics)})
        for row in healthy(steps, seed=seed)
    ]


def wobbling(rows, name, size):
    """The same rows, `name` alternating by ± `size` around what it is."""
    return [Row(row.step, row.metrics | {name: row.metrics[name] + size * (-1) ** row.step}) for row in rows]


def gold_along_gao(x, metrics):
    """√KL grows to 6 while gold follows d(.5 − .3 ln d), highest at e^{2/3} = 1.95."""
    d = 6 * x
    rewards = {"reward/gold_mean": gao_gain(d, 0.5, 0.3), "reward/mean": 0.3}
    kls = {"kl/sequence": d * d, "kl/k1_sequence": d * d, "kl/target": max(d * d, 0.1)}
    return {**rewards, **kls, "eval/reward_mean": 0.3}


SICK = {
    "negative_kl": sick(lambda x, m: {"kl/k1_sequence": -0.3, "kl/k1_sequence_se": 0.2}),
    "kl_off_target": sick(lambda x, m: {"kl/sequence": 2.5 * m["kl/sequence"]}),
    "kl_running_away": sick(lambda x, m: {"kl/sequence": 0.01 * math.exp(8 * x)}),
    "gold_reward_falling": sick(
        lambda x, m: {
            "reward/mean": x + 0.1 * m["reward/mean"],
            "reward/gold_mean": m["reward/gold_mean"] - 2 * x,
            "kl/sequence": 6.0,  # it stands still: the fall is not one along √KL
        }
    ),
    "held_out_reward_falling": sick(
        lambda x, m: (
            {"reward/mean": x + 0.1 * m["reward/mean"], "reward/gold_mean": 0.1}
            | ({"eval/reward_mean": 0.3 * math.sin(math.pi * x)} if "eval/reward_mean" in m else {})
        )
    ),
    "past_the_peak": wobbling(sick(gold_along_gao), "reward/gold_mean", 0.02),
    "length_drift": sick(lambda x, m: {"length/mean": (1 + x) * m["length/mean"]}),
    "repetition": sick(lambda x, m: {"text/repeated_bigrams": 0.05 + 0.6 * x**2}),
    "entropy_collapse": sick(lambda x, m: {"policy/entropy": m["policy/entropy"] * math.exp(-3 * x)}),
    "eos_lost": sick(lambda x, m: {"length/eos_rate": max(0.5 - x, 0.0)}),
    "kl_on_few_tokens": sick(lambda x, m: {"kl/top_decile_share": 0.85}),
    "kl_on_eos": sick(lambda x, m: {"kl/eos_share": x}),
    "clip_fraction_high": sick(lambda x, m: {"policy/clip_fraction": 0.6}),
    "ratio_high": sick(lambda x, m: {"policy/ratio_max": 10 * m["policy/ratio_max"]}),
    "value_useless": sick(lambda x, m: {"value/explained_variance": -0.3}),
    "generation_mismatch": sick(lambda x, m: {"policy/generation_mismatch": 0.3}),
    "reward_constant": sick(lambda x, m: {"reward/mean": 1.0, "reward/std": 0.0}),
}
OTHER_WAYS = [
    ("kl_off_target", sick(lambda x, m: {"kl/sequence": 0.3 * m["kl/sequence"]})),
    ("length_drift", sick(lambda x, m: {"length/mean": (1 - x / 2) * m["length/mean"]})),
    ("kl_running_away", [Row(r.step, {"kl/sequence": math.exp(r.step / 15)}) for r in healthy(60)]),
]


def rules(rows):
    return [finding.rule for finding in diagnose(rows)]


def test_every_rule_has_a_series():
    assert [rule.name for rule in RULES] == list(SICK)


@pytest.mark.parametrize("name", SICK)
def test_a_rule_is_fired_by_its_own_series_and_by_no_other(name):
    assert rules(SICK[name]) == [name]


@pytest.mark.parametrize(("name", "rows"), OTHER_WAYS)
def test_rules_with_two_sides(name, rows):
    assert rules(rows) == [name]


@pytest.mark.parametrize("name", SICK)
def test_a_finding_shows_its_number_past_its_threshold_and_where(name):
    (found,) = diagnose(SICK[name])
    rule = next(rule for rule in RULES if rule.name == name)
    assert (found.message, found.advice) == (rule.says, rule.advice)
    assert 1 <= found.first_step < found.last_step == STEPS
    assert found.numbers
    assert all(math.isfinite(number) for number in (found.value, found.threshold, *found.numbers.values()))


def test_the_evidence_of_a_negative_kl():
    # 5 steps, mean −.3, each with SE .2: −2 · √(5 · .04)/5 = −.17888544
    (found,) = diagnose(SICK["negative_kl"])
    assert (found.value, found.threshold) == (pytest.approx(-0.3), pytest.approx(-0.1788854382))
    assert (found.first_step, found.last_step) == (116, 120)
    barely = [Row(r.step, {"kl/k1_sequence": -0.17, "kl/k1_sequence_se": 0.2}) for r in healthy(60)]
    assert rules(barely) == []


@pytest.mark.parametrize("name", SICK)
def test_a_rule_without_its_metrics_is_silent(name):
    """Whatever single metric is taken from a sick run, nothing else fires."""
    for metric in SICK[name][0].metrics:
        rows = [Row(r.step, {k: v for k, v in r.metrics.items() if k != metric}) for r in SICK[name]]
        assert set(rules(rows)) <= {name}, metric


def test_the_demo_is_healthy_at_every_step():
    assert [rules(DEMO[:step]) for step in range(len(DEMO) + 1)] == [[]] * 15


def test_a_run_to_a_known_optimum_is_healthy():
    """Real metrics of the tabular loop of T13, which ends at its closed-form optimum."""
    options = config({}, beta=BETA, tokens=1, steps=110, batch=64)
    once = options.optimization.model_copy(update={"epochs": 1, "minibatches": 1})
    options = options.model_copy(update={"optimization": once})
    results = run(TabularPolicy([REFERENCE]), options, lambda ids: SCORES[ids[0]])
    assert results[-1].metrics["kl/sequence"] == pytest.approx(0.295, abs=0.1)  # of the optimum
    assert rules([Row(result.step, result.metrics) for result in results]) == []


@pytest.mark.parametrize(
    "options", [{}, {"steps": 400}, {"arrives": 110}, {"target": 0.5}, {"evaluated_every": 1}]
)
def test_healthy_runs_fire_nothing(options):
    """20 draws each, looked at ten times; negative_kl may err by chance, as a test at 2 SE must."""
    fired = Counter()
    looks = 0
    for seed in range(20):
        rows = healthy(**options, seed=seed)
        for step in range(12, len(rows) + 1, len(rows) // 10):
            fired.update(rules(rows[:step]))
            looks += 1
    assert set(fired) <= {"negative_kl"}
    assert fired["negative_kl"] <= 0.02 * looks


@pytest.mark.parametrize("seed", range(5))
def test_over_optimisation_is_seen_before_the_drift_is_twice_that_of_the_peak(seed):
    """√KL grows evenly and the proxy with it; gold is highest at 1.95, with a scatter of .05."""
    random = np.random.default_rng(seed)
    rows = []
    for step in range(1, 121):
        d = step / 20
        gold = gao_gain(d, 0.5, 0.3) + 0.05 * random.normal()
        proxy = 0.4 * d + 0.05 * random.normal()
        rows.append(Row(step, {"reward/mean": proxy, "reward/gold_mean": gold, "kl/sequence": d * d}))
        if rules(rows):
            break
    assert set(rules(rows)) <= {"gold_reward_falling", "past_the_peak"}
    assert 1.95 < d < 2 * 1.95


def test_a_plateau_is_no_peak():
    """Gold 1 − e^{−d}, which Gao's law does not fit, then flat: a fitted peak alone is no finding."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = []
        for step in range(1, 101):
            d = 2.5 * min(1, step / 50) * (1 + 0.03 * random.normal())
            gold = 1 - math.exp(-d) + 0.05 * random.normal()
            rows.append(Row(step, {"reward/mean": gold, "reward/gold_mean": gold, "kl/sequence": d * d}))
        assert rules(rows) == []


def test_a_series_of_too_few_points_hides_no_other():
    """Gold of the held-out completions at 7 evaluations; their reward, at every step, along Gao's law."""
    rows = [
        Row(
            row.step,
            {
                "eval/reward_mean": row.metrics["reward/gold_mean"],
                "eval/kl_sequence": row.metrics["kl/sequence"],
                **({"eval/gold_mean": 0.0} if row.step > STEPS - 7 else {}),
            },
        )
        for row in SICK["past_the_peak"]
    ]
    assert rules(rows) == ["past_the_peak"]


def test_no_rows_and_no_metrics():
    assert diagnose([]) == []
    assert diagnose([Row(step, {}) for step in range(200)]) == []
    for wrong in (math.nan, math.inf, 1e300):
        assert (
            diagnose([Row(step, dict.fromkeys(SICK["eos_lost"][9].metrics, wrong)) for step in range(200)])
            == []
        )
