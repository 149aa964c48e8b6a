"""/v1/queue and /v1/workers: counts over everybody's jobs, and of workers no job but the caller's."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import update
from starlette.testclient import TestClient

from jobs.schema_workers import workers
from jobs.sql_store import SqlStore
from jobs.store_workers import STALE_AFTER_S, WorkerCard


def card(name: str, *queues: str) -> WorkerCard:
    return WorkerCard(id=name, host="h", queues=queues, device="cpu", versions={"celery": "5"})


def test_the_queue(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    empty = client.get("/v1/queue").json()
    assert (empty["waiting"], empty["oldest_wait_s"]) == (0, None)
    assert empty["queues"] == [{"name": "cpu", "waiting": 0, "workers": 0}]
    for priority in (5, 9, 5, 0):
        job_id = client.post("/v1/jobs", json=spec | {"priority": priority}).json()["id"]
    assert store.claim(job_id, 1, worker="h:1", lease_s=60)
    store.record_worker(card("h:1", "cpu", "gpu.any"))
    store.record_worker(card("h:2", "cpu"))
    found = client.get("/v1/queue").json()
    assert {name: found[name] for name in ("object", "waiting", "running", "paused")} == {
        "object": "queue",
        "waiting": 3,
        "running": 1,
        "paused": 0,
    }
    assert found["waiting_by_priority"] == [{"priority": 9, "jobs": 1}, {"priority": 5, "jobs": 2}]
    assert 0 <= found["oldest_wait_s"] < 60
    assert found["queues"] == [
        {"name": "cpu", "waiting": 3, "workers": 2},
        {"name": "gpu.any", "waiting": 0, "workers": 1},
    ]


def test_workers_and_whose_job_they_run(
    keyed_client: TestClient,
    store: SqlStore,
    new_key: Callable[[], dict[str, str]],
    spec: dict[str, Any],
) -> None:
    mine, other = new_key(), new_key()
    job_id = keyed_client.post("/v1/jobs", json=spec, headers=mine).json()["id"]
    for name in ("h:1", "h:2", "h:3"):
        store.record_worker(card(name, "cpu"))
    assert store.claim(job_id, 1, worker="h:1", lease_s=60)
    with store.writing() as connection:
        late = workers.c.heartbeat_at - STALE_AFTER_S - 1
        connection.execute(update(workers).where(workers.c.id == "h:3").values(heartbeat_at=late))
    for headers, shown in ((mine, job_id), (other, None)):
        found = keyed_client.get("/v1/workers", headers=headers)
        assert [(w["id"], w["state"], w["current_job"]) for w in found.json()["data"]] == [
            ("h:1", "busy", shown),
            ("h:2", "idle", None),
            ("h:3", "stale", None),
        ]
        assert ("job_" in found.text) == (shown is not None)
        first = found.json()["data"][0]
        assert (first["host"], first["device"], first["versions"]) == ("h", "cpu", {"celery": "5"})
        assert 0 <= first["heartbeat_age_s"] < STALE_AFTER_S < found.json()["data"][2]["heartbeat_age_s"]
