"""What the demo says of a job's numbers, and how it ends when its stack cannot start."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kleash import Client, demo
from tests.kleash.scripted import Service, a_job


def test_the_outcome_is_paired_and_stands_beside_its_tells() -> None:
    evaluation = {
        "before": {"reward_mean": 0.25, "length_mean": 15.5, "repeated_bigrams": 0.01},
        "after": {"reward_mean": 0.75, "length_mean": 16.0, "repeated_bigrams": 0.125},
        "reward_difference": {"mean": 0.5, "se": 0.0625, "n": 64.0},
    }
    reward, length, repetition = demo.outcome(evaluation)
    assert "+0.250 → +0.750" in reward
    assert "+0.500 ± 0.062 SE over 64 prompts" in reward
    assert "15.5 → 16.0" in length
    assert "0.010 → 0.125" in repetition


def test_the_leash_is_the_mean_of_the_last_quarter_of_the_steps() -> None:
    # 8 steps: the last quarter is 7 and 8, mean (5 + 7) / 2 = 6, half as much again as the target 4.
    rows = [{"step": step, "metrics": {"kl/sequence": 100.0, "kl/target": 4.0}} for step in range(1, 7)]
    rows += [{"step": 7, "metrics": {"kl/sequence": 5.0, "kl/target": 4.0}}]
    rows += [{"step": 8, "metrics": {"kl/sequence": 7.0, "kl/target": 4.0}}]
    line = str(demo.leash(rows, 8))
    assert "6.00 nats, mean of the last 2 steps" in line
    assert line.endswith("target 4 (+50%)")


def test_a_leash_without_a_target_names_none() -> None:
    assert str(demo.leash([{"step": 1, "metrics": {"kl/sequence": 2.0}}], 1)).endswith("last 1 steps")


def test_the_sample_shown_is_the_one_whose_reward_changed_by_the_median(service: Service) -> None:
    before = [{"data": {"reward": reward}} for reward in (0.0, 0.5, 0.2)]
    after = [{"data": {"reward": reward}} for reward in (0.9, 0.4, 0.3)]  # changes +.9, −.1, +.1
    service.answers = [(200, {}, {"data": before}), (200, {}, {"data": after})]
    with Client(service.url) as client:
        assert demo._typical_sample(client, a_job("succeeded", 4)) == (before[2], after[2])
    assert [asked.path.partition("?")[2] for asked in service.asked] == [
        "step=0&kind=eval&limit=100",
        "step=4&kind=eval&limit=100",
    ]


def test_a_stack_that_cannot_start_is_shown_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(demo.DemoError, match="There is no model registry at"):
        demo.run(tmp_path, tmp_path / "missing.json")


EVALUATION = {"reward_difference": {"mean": 0.3125, "se": 0.0625, "n": 64.0}}  # a rise of exactly 5 SE


@pytest.mark.parametrize(
    ("evaluation", "held", "missed"),
    [
        (EVALUATION, demo.Leash(5.0, 8, 4.0), []),  # +25 % is just within
        (EVALUATION, demo.Leash(3.0, 8, 4.0), []),
        (EVALUATION, demo.Leash(99.0, 8, None), []),
        (EVALUATION, demo.Leash(5.1, 8, 4.0), ["KL"]),
        (EVALUATION, demo.Leash(2.9, 8, 4.0), ["KL"]),
        (EVALUATION, demo.Leash(math.nan, 8, 4.0), ["KL"]),
        ({"reward_difference": {"mean": 0.3, "se": 0.0625, "n": 64.0}}, demo.Leash(4.0, 8, 4.0), ["reward"]),
        (
            {"reward_difference": {"mean": -9.0, "se": 0.1, "n": 64.0}},
            demo.Leash(9.0, 8, 4.0),
            ["reward", "KL"],
        ),
    ],
)
def test_a_demo_that_shows_less_than_it_promises_says_what_is_missing(
    evaluation: dict[str, dict[str, float]], held: demo.Leash, missed: list[str]
) -> None:
    found = list(demo.shortfalls(evaluation, held))
    assert len(found) == len(missed)
    assert all(word in sentence for word, sentence in zip(missed, found, strict=True))


def test_a_demo_that_missed_its_promise_fails_after_the_stack_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    @contextmanager
    def stack(*_: object) -> Iterator[str]:
        yield "http://127.0.0.1:1"
        steps.append("stopped")

    monkeypatch.setattr(demo, "_stack", stack)
    monkeypatch.setattr(demo, "_score_sentences", lambda *_: None)
    monkeypatch.setattr(demo, "_train", lambda *_: {})
    monkeypatch.setattr(demo, "_report", lambda *_: ["The reward rose too little."])
    with pytest.raises(demo.DemoError, match="rose too little"):
        demo.run(tmp_path, None)
    assert steps == ["stopped"]
