"""Metrics as series, on both databases: what is kept of them, and what a client that comes back is told."""

import random
from typing import Any

import pytest

from jobs.errors import JobNotFound
from jobs.metric_series import Cursor, PointSeries, SeriesAnswer, SeriesQuery
from jobs.schema import job_metrics
from jobs.schema_data import job_metric_keys
from jobs.spec import NewEvent
from jobs.sql_store import SqlStore
from tests.contracts.store_jobs import claim, create, reap_later, set_row

Series = dict[str, dict[int, float]]  # by key, by step


def write(store: SqlStore, series: Series, *, attempt: int = 1, job_id: str = "job_1") -> None:
    """The rows of a run that has completed the last of these steps."""
    steps = sorted({step for points in series.values() for step in points})
    rows = [
        {
            "job_id": job_id,
            "step": step,
            "metrics": {key: points[step] for key, points in series.items() if step in points},
            "timings": {},
            "attempt": attempt,
            "created_at": 10.0 * step,
        }
        for step in steps
    ]
    with store.writing() as connection:
        connection.execute(job_metrics.insert(), rows)
        connection.execute(job_metric_keys.insert(), [{"job_id": job_id, "key": key} for key in series])
    set_row(store, job_id, step=steps[-1], attempt=attempt)


def by_key(found: SeriesAnswer) -> Series:
    for one in found.series:
        assert list(one.points) == sorted(one.points)
    return {one.key: one.points for one in found.series}


def naive(points: dict[int, float], steps: list[int], most: int) -> dict[int, float]:
    """The first, the last, and of each of (most − 2) // 2 equal spans of steps the lowest and the highest point.

    Of equal values the earliest counts.
    """
    if len(steps) <= most or len(points) <= most:
        return points
    buckets, span = (most - 2) // 2, steps[-1] - steps[0] + 1
    kept = {min(points), max(points)}
    for bucket in range(buckets):
        inside = [step for step in sorted(points) if (step - steps[0]) * buckets // span == bucket]
        if inside:
            kept |= {min(inside, key=points.__getitem__), max(inside, key=points.__getitem__)}
    return {step: points[step] for step in kept}


def random_series(rng: random.Random) -> Series:
    """Runs with gaps, plateaus, spikes and keys that only some steps have."""
    steps = sorted(rng.sample(range(1, 400), rng.randint(1, 150)))
    series: Series = {}
    for place in range(rng.randint(1, 4)):
        share = rng.choice((0.1, 0.7, 1.0))
        values = rng.choice(
            ((0.0, 0.0, 1.0), (-1e308, 5e-324, 0.1 + 0.2), tuple(rng.gauss(0, 1) for _ in range(50)))
        )
        points = {step: rng.choice(values) for step in steps if rng.random() < share}
        series[f"k{place}/A.b" + "-long" * 20 * (place == 2)] = points or {steps[0]: 1.0}
    return series


def check_random_series(store: SqlStore, runs: int, seed: int = 0) -> None:
    """Every kept set is the naive one: so every global extremum of each key survives."""
    rng = random.Random(seed)
    for run in range(runs):
        job_id, series = f"job_{run}", random_series(rng)
        create(store, job_id)
        write(store, series, job_id=job_id)
        steps = sorted({step for points in series.values() for step in points})
        most = rng.choice((4, 5, 9, 40, 2000))
        found = store.metric_series(job_id, SeriesQuery(most=most))
        assert by_key(found) == {key: naive(points, steps, most) for key, points in series.items()}
        for key, points in series.items():
            kept = by_key(found)[key]
            assert len(kept) <= most
            assert {min(kept.values()), max(kept.values())} == {min(points.values()), max(points.values())}
            assert {min(kept), max(kept)} == {min(points), max(points)}
            assert [one.n for one in found.series if one.key == key] == [len(points)]


def test_what_is_kept_is_what_a_loop_over_all_points_keeps(store: SqlStore) -> None:
    check_random_series(store, 25)


@pytest.fixture
def hundred(store: SqlStore) -> SqlStore:
    """A job of 100 steps: `a` is the step itself, `b/x` is there at every tenth."""
    create(store)
    write(
        store,
        {
            "a": {step: float(step) for step in range(1, 101)},
            "b/x": dict.fromkeys(range(10, 101, 10), 1.0),
        },
    )
    return store


def test_the_last_point_of_each_bucket(hundred: SqlStore) -> None:
    # 100 steps in 12 − 2 = 10 buckets end at 10, 20, …; the first point comes in addition.
    # b/x has 10 points: all stay.
    answer = hundred.metric_series("job_1", SeriesQuery(most=12, choose="last", times=True))
    found = by_key(answer)
    assert list(found["a"]) == [1, *range(10, 101, 10)]
    assert answer.times == {step: 10.0 * step for step in found["a"]}
    assert list(found["b/x"]) == list(range(10, 101, 10))


def test_keys_and_steps_are_chosen(hundred: SqlStore) -> None:
    def steps(**options: Any) -> dict[str, list[int]]:
        found = by_key(hundred.metric_series("job_1", SeriesQuery(**options)))
        return {key: list(points) for key, points in found.items()}

    assert steps(patterns=("b/*",), to_step=30) == {"b/x": [10, 20, 30]}
    assert steps(patterns=("a", "nothing"), from_step=99) == {"a": [99, 100]}
    assert steps(patterns=("*",), from_step=50, to_step=51) == {"a": [50, 51], "b/x": [50]}
    assert steps(from_step=101) == steps(patterns=("A",)) == {}
    with pytest.raises(JobNotFound):
        hundred.metric_series("job_2", SeriesQuery())


def test_every_point_is_there_page_by_page(hundred: SqlStore) -> None:
    seen, query = [], SeriesQuery(patterns=("a",), most=30, choose="none")
    while True:
        found = hundred.metric_series("job_1", query)
        seen.append(list(by_key(found)["a"]))
        if not found.more:
            break
        query = SeriesQuery(patterns=("a",), most=30, choose="none", after=found.cursor)
    assert [len(page) for page in seen] == [30, 30, 30, 10]
    assert [step for page in seen for step in page] == list(range(1, 101))


def test_a_step_is_recorded_with_its_names_and_timings(store: SqlStore, clock: Any) -> None:
    create(store)
    attempt = claim(store).attempt
    first = {"kl": 0.1 + 0.2, "nan": float("nan"), "tiny": 5e-324}
    store.record_step("job_1", attempt, step=1, metrics=first, timings={"rollout_s": 2.0})
    store.record_step("job_1", attempt, step=2, metrics={"kl": 1e308, "new": -0.0}, timings={})
    assert store.metric_keys("job_1") == ["kl", "new", "timings/rollout_s", "tiny"]
    assert store.metric_series("job_1", SeriesQuery()).series == [
        PointSeries("kl", 2, {1: 0.1 + 0.2, 2: 1e308}),
        PointSeries("new", 1, {2: 0.0}),
        PointSeries("timings/rollout_s", 1, {1: 2.0}),
        PointSeries("tiny", 1, {1: 5e-324}),
    ]
    assert store.run_mark("job_1", "me") == (2, attempt, True)
    with pytest.raises(JobNotFound):
        store.run_mark("job_1", "you")


def test_a_client_that_comes_back_learns_what_was_written_again(store: SqlStore, clock: Any) -> None:
    """Attempt 1 reaches step 7 and is lost; attempt 2 goes on from a save at 4, attempt 3 from one at 6."""
    create(store)
    held: dict[int, float] = {}  # what a polling client has
    cursor: Cursor | None = None

    def poll() -> int | None:
        nonlocal cursor
        found = store.metric_series("job_1", SeriesQuery(patterns=("a",), after=cursor))
        if found.rewritten_from is not None:
            for step in [step for step in held if step >= found.rewritten_from]:
                del held[step]
        held.update(by_key(found).get("a", {}))
        cursor = found.cursor
        stored = {
            row.step: row.metrics["a"] for row in store.list_metrics("job_1") if row.step <= found.last_step
        }
        assert held == stored
        return found.rewritten_from

    def steps(*numbers: int) -> None:
        for step in numbers:
            store.record_step("job_1", attempt, step=step, metrics={"a": 10 * attempt + step}, timings={})

    assert (poll(), cursor) == (None, None)
    attempt = claim(store).attempt
    steps(1, 2, 3)
    assert (poll(), cursor) == (None, Cursor(3, 1))
    steps(4, 5, 6, 7)
    late = cursor  # a client that comes back only at the end
    assert (poll(), cursor) == (None, Cursor(7, 1))
    assert (poll(), cursor) == (None, Cursor(7, 1))
    reap_later(store, clock)
    attempt = claim(store).attempt
    assert poll() is None  # nothing is lost before the new attempt has completed a step
    steps(5)
    assert (poll(), cursor) == (5, Cursor(5, 2))
    steps(6)
    assert (poll(), cursor) == (None, Cursor(6, 2))
    store.hand_back("job_1", attempt, reason="r")
    attempt = claim(store).attempt
    steps(7, 8)
    assert (poll(), cursor) == (None, Cursor(8, 3))
    found = store.metric_series("job_1", SeriesQuery(after=late))
    assert (found.rewritten_from, list(by_key(found)["a"])) == (None, [4, 5, 6, 7, 8])
    found = store.metric_series("job_1", SeriesQuery(after=Cursor(6, 1)))
    assert (found.rewritten_from, list(by_key(found)["a"])) == (5, [5, 6, 7, 8])


@pytest.mark.parametrize("text", ["", "s1", "s1.a", "s-1.a1", "s1.a1 ", "s99999999999.a1", "s1.a4294967296"])
def test_a_cursor_is_one_of_ours(text: str) -> None:
    assert Cursor.parse(text) is None
    assert Cursor.parse(str(Cursor(7, 2))) == Cursor(7, 2)


def test_events_are_filtered(store: SqlStore) -> None:
    create(store)
    attempt = claim(store).attempt  # 1 created, 2 started
    told = [("checkpoint.created", "info"), ("checkpointed", "warning"), ("eval.completed", "error")]
    for type_, level in told:
        store.add_event("job_1", attempt, NewEvent(type=type_, message="m", level=level))

    def seqs(**options: Any) -> list[int]:
        return [event.seq for event in store.list_events("job_1", **options)]

    assert seqs(levels=("warning", "error")) == [4, 5]
    assert seqs(kind="checkpoint.*") == seqs(kind="checkpoint.created") == [3]
    assert seqs(kind="checkpoint_*") == []  # no wildcard of SQL's
    assert seqs(newest_first=True, after=None, limit=2) == [5, 4]
    assert seqs(newest_first=True, after=4) == [3, 2, 1]
