"""What a job's document and its frontier say about its stored metrics."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from api.services import analysis
from api.services.analysis import FIRST
from jobs.spec import NewEvent
from jobs.sql_store import SqlStore
from rlhf_core.best_of_n import BestOf
from rlhf_core.frontier import gao_gain


def create(client: TestClient, spec: dict[str, Any], steps: int = 2000) -> str:
    spec["config"]["optimization"] = {"steps": steps}
    response = client.post("/v1/jobs", json=spec)
    assert response.status_code == 201, response.text
    job_id: str = response.json()["id"]
    return job_id


def claimed(store: SqlStore, job_id: str) -> int:
    running = store.claim(job_id, store.get_job(job_id).epoch, worker="w0@here", lease_s=60)
    assert running is not None
    return running.attempt


def record(store: SqlStore, job_id: str, attempt: int, step: int, **metrics: float) -> None:
    store.record_step(job_id, attempt, step=step, metrics=metrics, timings={})


MISMATCH = {"policy/generation_mismatch": 0.3}


@pytest.fixture
def job_id(client: TestClient, spec: dict[str, Any]) -> str:
    return create(client, spec)


def test_a_job_says_what_its_metrics_warn_of(client: TestClient, store: SqlStore, job_id: str) -> None:
    assert client.get(f"/v1/jobs/{job_id}").json()["diagnosis"] == []
    attempt = claimed(store, job_id)
    for step in range(1, 12):
        record(store, job_id, attempt, step, **MISMATCH)
    answer = client.get(f"/v1/jobs/{job_id}")
    (finding,) = answer.json()["diagnosis"]
    assert (finding["rule"], finding["value"], finding["threshold"]) == ("generation_mismatch", 0.3, 0.05)
    assert finding["evidence"] == {
        "first_step": 2,
        "last_step": 11,
        "numbers": {"mean policy/generation_mismatch": 0.3},
    }
    assert finding["message"]
    assert finding["advice"]
    asked = client.post(f"/v1/jobs/{job_id}/pause").json()
    assert asked["diagnosis"] == [finding]


def test_rows_of_steps_that_were_lost_are_no_part_of_it(
    client: TestClient, store: SqlStore, job_id: str
) -> None:
    """Lost at step 11, it goes on from a checkpoint at 5: the rows of 7 to 11 are there and do not count."""
    attempt = claimed(store, job_id)
    for step in range(1, 12):
        record(store, job_id, attempt, step, **MISMATCH)
    store.hand_back(job_id, attempt, reason="lost", crashed=True)
    record(store, job_id, claimed(store, job_id), 6, **MISMATCH)
    assert client.get(f"/v1/jobs/{job_id}").json()["diagnosis"] == []
    assert len(store.list_metrics(job_id)) == 11
    assert client.get(f"/v1/jobs/{job_id}/metrics").json()["series"][0]["step"] == [1, 2, 3, 4, 5, 6]


def test_polls_read_the_rows_once_per_step(
    client: TestClient, store: SqlStore, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(store, job_id)
    read = []
    real = SqlStore.list_metrics
    monkeypatch.setattr(SqlStore, "list_metrics", lambda *a, **o: read.append(1) or real(*a, **o))
    for step in (1, 2):
        record(store, job_id, attempt, step, **MISMATCH)
        for _ in range(3):
            store.heartbeat(job_id, attempt, lease_s=60)
            assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        assert len(read) == step


@pytest.mark.parametrize(("evaluated_every", "kept"), [(3, 6), (60, 60)])  # 3 · ⌈100 / (20 · 3)⌉ = 6
def test_a_long_run_is_read_in_part_with_its_start_its_end_and_its_evaluations(
    client: TestClient,
    store: SqlStore,
    spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    evaluated_every: int,
    kept: int,
) -> None:
    monkeypatch.setattr(analysis, "BETWEEN", 20)
    monkeypatch.setattr(analysis, "LAST", 15)
    spec["config"]["evaluation"] = {"every_steps": evaluated_every}
    job_id = create(client, spec)
    attempt = claimed(store, job_id)
    steps = 100
    for step in range(1, steps + 1):
        record(store, job_id, attempt, step, **{"reward/mean": float(step), "kl/sequence": 1.0})
    points = client.get(f"/v1/jobs/{job_id}/frontier").json()["proxy"]["points"]
    seen = [point["step"] for point in points]
    assert seen == sorted(set(seen))
    assert set(range(1, FIRST + 1)) | set(range(steps - 14, steps + 1)) < set(seen)
    assert set(range(kept, steps, kept)) <= set(seen)  # steps that were evaluated
    assert set(range(5, steps, 5)) <= set(seen)  # ⌈100 / 20⌉ = 5
    assert len(seen) <= FIRST + 20 + 20 + 15


def test_the_frontier_has_points_the_law_and_its_peak(
    client: TestClient, store: SqlStore, job_id: str
) -> None:
    """Gold along d(.5 − .25 ln d): highest at e, where it is e/4."""
    attempt = claimed(store, job_id)
    for step in range(1, 41):
        d = step / 8
        gold = 1 + gao_gain(d, 0.5, 0.25)
        record(
            store, job_id, attempt, step, **{"reward/mean": d, "reward/gold_mean": gold, "kl/sequence": d * d}
        )
    job = client.get(f"/v1/jobs/{job_id}").json()
    found = client.get(job["links"]["frontier"]).json()
    assert (found["job_id"], found["last_step"], found["held_out"]) == (
        job_id,
        40,
        {"points": [], "fit": None},
    )
    assert found["gold"]["points"][15] == {
        "step": 16,
        "kl": 4.0,
        "d": 2.0,
        "reward": pytest.approx(1.653426409720),
    }
    fit = found["gold"]["fit"]
    assert (fit["r0"], fit["a"], fit["b"]) == (pytest.approx(1), pytest.approx(0.5), pytest.approx(0.25))
    peak = fit["peak"]
    assert (peak["d"], peak["kl"], peak["reward"]) == (
        pytest.approx(2.718281828),
        pytest.approx(7.389056099),
        pytest.approx(1.679570457),
    )
    assert peak["low"] <= peak["d"] <= peak["high"]
    assert found["proxy"]["fit"]["a"] == pytest.approx(1)  # a straight line
    assert found["best_of_n"] == []
    assert [f["rule"] for f in job["diagnosis"]] == ["gold_reward_falling", "past_the_peak"]


def test_best_of_n_lies_beside_the_curves(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    """From the worker's event, wherever it stands among the others."""
    spec["config"]["data"]["eval_prompts"] = ["There was"]
    spec["config"]["evaluation"] = {"best_of_n": 4}
    job_id = create(client, spec)
    attempt = claimed(store, job_id)
    for count in range(120):
        store.add_event(job_id, attempt, NewEvent(type="checkpoint.corrupt", message=str(count), data={}))
    assert client.get(f"/v1/jobs/{job_id}/frontier").json()["best_of_n"] == []
    measured = [BestOf(1, 0.0, 0.5, 0.1), BestOf(4, 0.6362943611, 0.75, None, 0.25, 0.2)]
    points = [point._asdict() for point in measured]
    store.add_event(
        job_id, attempt, NewEvent(type="job.best_of_n", message="measured", data={"points": points})
    )
    found = client.get(f"/v1/jobs/{job_id}/frontier").json()["best_of_n"]
    assert found == [
        points[0] | {"d": 0.0, "gold": None, "gold_se": None},
        points[1] | {"d": pytest.approx(0.7976806)},
    ]


def test_a_score_job_has_neither(client: TestClient) -> None:
    job = client.post("/v1/jobs", json={"type": "score", "config": {"items": ["a"]}}).json()
    assert (job["diagnosis"], job["links"]["frontier"]) == (None, None)
    found = client.get(f"/v1/jobs/{job['id']}/frontier").json()
    assert found["proxy"] == found["gold"] == {"points": [], "fit": None}
