"""Who calls: whose jobs a key sees; in open mode, loopback names only. Every operation: test_access.py."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.sql_store import SqlStore

NewKey = Callable[..., dict[str, str]]


def test_a_key_opens_the_door_and_its_jobs_are_its_own(
    keyed_client: TestClient, store: SqlStore, new_key: NewKey, spec: dict[str, Any]
) -> None:
    mine, other = new_key(), new_key()
    job = keyed_client.post("/v1/jobs", json=spec, headers=mine | {"Idempotency-Key": "k"}).json()
    for part in ("", "/events", "/metrics", "/frontier", "/checkpoints", "/samples", "/logs"):
        url = f"/v1/jobs/{job['id']}{part}"
        assert keyed_client.get(url, headers=mine).status_code == 200
        stranger = keyed_client.get(url, headers=other | {"If-None-Match": '"1"'})
        assert (stranger.status_code, stranger.json()["code"]) == (404, "not_found")
    assert keyed_client.post(f"/v1/jobs/{job['id']}/cancel", headers=other).status_code == 404
    assert keyed_client.get("/v1/jobs", headers=other).json()["data"] == []
    # The same Idempotency-Key of another caller is another key.
    theirs = keyed_client.post("/v1/jobs", json=spec, headers=other | {"Idempotency-Key": "k"})
    assert theirs.status_code == 201
    assert theirs.json()["id"] != job["id"]
    assert store.get_job(job["id"]).public_status == "queued"


def test_a_checkpoint_of_a_stranger_is_no_model(
    keyed_client: TestClient, store: SqlStore, new_key: NewKey, spec: dict[str, Any]
) -> None:
    job_id = keyed_client.post("/v1/jobs", json=spec, headers=new_key()).json()["id"]
    running = store.claim(job_id, 1, worker="w", lease_s=60)
    assert running is not None
    store.record_checkpoint(job_id, running.attempt, name="final", step=1, path="/x", sha256="0" * 64, size=1)
    spec["config"]["model"]["name"] = f"{job_id}@final"
    refused = keyed_client.post("/v1/jobs", json=spec, headers=new_key())
    assert (refused.status_code, refused.json()["code"]) == (422, "unknown_model")


def test_open_mode_answers_under_loopback_names(client: TestClient) -> None:
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST:1"):
        assert client.get("/v1/jobs", headers={"Host": host}).status_code == 200


def test_open_mode_refuses_every_other_machine(
    app: FastAPI, keyed_client: TestClient, new_key: NewKey
) -> None:
    for address, status in (("127.0.0.1", 200), ("127.9.9.9", 200), ("::1", 200), ("10.0.0.7", 403)):
        client = TestClient(app, base_url="http://127.0.0.1:8000", client=(address, 50_000))
        response = client.get("/v1/jobs")
        assert response.status_code == status, address
        if status == 403:
            assert response.json()["code"] == "host_not_allowed"
    away = TestClient(keyed_client.app, base_url="http://kleash.example", client=("10.0.0.7", 50_000))
    assert away.get("/v1/jobs", headers=new_key()).status_code == 200


def test_with_keys_any_host_name_will_do(keyed_client: TestClient, new_key: NewKey) -> None:
    response = keyed_client.get("/v1/jobs", headers=new_key() | {"Host": "kleash.example"})
    assert response.status_code == 200
