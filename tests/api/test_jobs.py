"""/v1/jobs over HTTP: what a client that creates, watches and cancels jobs relies on."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import product
from typing import Any

from starlette.testclient import TestClient

from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.api.acting import claimed, create


def test_a_created_job_is_there_queued_and_sent(
    client: TestClient, broker: Any, spec: dict[str, Any]
) -> None:
    response = client.post("/v1/jobs", json=spec | {"name": "first", "metadata": {"team": "rl"}})

    job = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert response.headers["etag"] == '"1"'
    assert "idempotency-replayed" not in response.headers
    assert (job["status"], job["done"], job["attempt"], job["worker"]) == ("queued", False, 0, None)
    assert (job["name"], job["metadata"]) == ("first", {"team": "rl"})
    assert job["progress"] == {"step": 0, "total_steps": 4, "percent": 0.0, "eta_s": None, "latest": {}}
    assert job["config"]["kl"]["beta"] == 0.05  # defaults are filled in
    assert job["created_at"].endswith("Z")
    assert datetime.fromisoformat(job["created_at"]).microsecond % 1000 == 0
    assert client.get(job["links"]["self"]).json() == job
    assert broker.published.get(timeout=30)[:2] == (job["id"], 1)


def test_a_broker_that_is_down_refuses_no_job(client: TestClient, broker: Any, spec: dict[str, Any]) -> None:
    broker.up = False
    assert create(client, spec)["status"] == "queued"
    ready = client.get("/ready")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "checks": {"database": "ok", "broker": "down", "scorer": "ok"},
    }


def test_what_the_worker_needs_is_resolved_at_creation(
    client: TestClient, store: SqlStore, spec: dict[str, Any], roots: Any
) -> None:
    spec["config"]["data"] = {"prompts_file": "prompts.jsonl", "eval_prompts": ["There was"]}
    resolved = store.get_job(create(client, spec)["id"]).resolved
    assert resolved == {
        "model": {"path": "org/base", "base": None},
        "checkpoints": [],
        "classifiers": {},
        "prompts_file": str((roots / "prompts.jsonl").resolve()),
        "eval_prompts_file": None,
        "ptx_texts_file": None,
        "resume_from": None,
    }


def test_the_file_of_the_pretraining_mix_is_resolved_likewise(
    client: TestClient, store: SqlStore, spec: dict[str, Any], roots: Any
) -> None:
    spec["config"]["data"] = {"prompts": ["a"], "ptx_texts_file": "prompts.jsonl"}
    spec["config"]["loss"] = {"ptx_coefficient": 0.5}
    resolved = store.get_job(create(client, spec)["id"]).resolved
    assert resolved["ptx_texts_file"] == str((roots / "prompts.jsonl").resolve())


def test_a_poll_with_the_current_etag_costs_a_304(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    url = create(client, spec)["links"]["self"]
    etag = client.get(url).headers["etag"]
    for tags in (etag, f"W/{etag}", f'"0", {etag}', "*"):
        unchanged = client.get(url, headers={"If-None-Match": tags})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)

    claimed(store, url.rpartition("/")[2])
    changed = client.get(url, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
    assert changed.headers["etag"] != etag


def test_one_key_makes_one_job_however_many_ask_at_once(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    def post(_: int) -> Any:
        return client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(post, range(32)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == len(store.list_jobs(limit=100)) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(replayed, key=str) == [None] + ["true"] * 31


def test_a_key_is_bound_to_the_meaning_of_the_body_not_to_its_spelling(
    client: TestClient, spec: dict[str, Any]
) -> None:
    first = create(client, spec, **{"Idempotency-Key": "k"})
    spelled_out = {"metadata": {}, **dict(reversed(spec.items())), "limits": {"max_attempts": 3}}
    assert create(client, spelled_out, **{"Idempotency-Key": "k"})["id"] == first["id"]

    other = client.post("/v1/jobs", json=spec | {"name": "other"}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_repeat_finds_its_job_even_when_what_it_names_has_gone(
    client: TestClient, spec: dict[str, Any], roots: Any
) -> None:
    spec["config"]["data"] = {"prompts_file": "prompts.jsonl"}
    first = create(client, spec, **{"Idempotency-Key": "k"})
    (roots / "prompts.jsonl").unlink()
    again = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert again.headers["idempotency-replayed"] == "true"
    assert client.post("/v1/jobs", json=spec).json()["code"] == "file_not_found"
    spec["name"] = "another"
    other = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert other.json()["code"] == "idempotency_key_reused"


def test_a_list_leaves_the_configs_out(client: TestClient, spec: dict[str, Any]) -> None:
    job = create(client, spec)
    (listed,) = client.get("/v1/jobs").json()["data"]
    assert not {"config", "diagnosis", "queue"} & set(listed)
    assert (
        listed | {name: job[name] for name in ("config", "diagnosis", "queue")}
        == client.get(job["links"]["self"]).json()
    )


def test_pages_hold_every_job_once_newest_first(client: TestClient, spec: dict[str, Any]) -> None:
    made = [create(client, spec)["id"] for _ in range(5)]
    seen: list[str] = []
    after: str | None = None
    for more in (True, True, False):
        params = {"limit": 2} | ({"after": after} if after else {})
        page = client.get("/v1/jobs", params=params).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] is more
        after = page["next_cursor"]
        assert after == (seen[-1] if more else None)
    assert seen == sorted(made, reverse=True)


def test_a_limit_out_of_range_is_moved_inside(client: TestClient, spec: dict[str, Any]) -> None:
    for _ in range(3):
        create(client, spec)
    for limit, size in ((-5, 1), (0, 1), (100_000, 3), (2**63 - 1, 3)):
        assert len(client.get("/v1/jobs", params={"limit": limit}).json()["data"]) == size


def test_jobs_are_found_by_their_public_status(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    queued, running, cancelling = (create(client, spec)["id"] for _ in range(3))
    claimed(store, running)
    claimed(store, cancelling)
    client.post(f"/v1/jobs/{cancelling}/cancel")
    for status, job_id in (("queued", queued), ("running", running), ("cancelling", cancelling)):
        data = client.get("/v1/jobs", params={"status": status}).json()["data"]
        assert [(job["id"], job["status"]) for job in data] == [(job_id, status)]


def test_cancel_is_final_at_once_while_queued_and_asked_for_while_running(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    queued, running = (create(client, spec)["id"] for _ in range(2))
    attempt = claimed(store, running).attempt
    expected = [(queued, 200, "cancelled"), (queued, 200, "cancelled"), (running, 202, "cancelling")]
    for job_id, code, status in expected:
        answer = client.post(f"/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (code, status)

    store.finish(running, attempt, Status.SUCCEEDED)  # it finished first
    late = client.post(f"/v1/jobs/{running}/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "invalid_state")
    assert late.json()["instance"] == f"/v1/jobs/{running}/cancel"


def test_pause_and_resume(client: TestClient, store: SqlStore, broker: Any, spec: dict[str, Any]) -> None:
    def ask(action: str) -> tuple[int, str]:
        answer = client.post(f"/v1/jobs/{job_id}/{action}")
        return answer.status_code, answer.json().get("status")

    job_id = create(client, spec)["id"]
    assert broker.published.get(timeout=30)[:2] == (job_id, 1)
    assert ask("pause") == ask("pause") == (200, "paused")
    assert client.get("/v1/jobs", params={"status": "paused"}).json()["data"][0]["done"] is False
    assert ask("resume") == ask("resume") == (200, "queued")
    assert broker.published.get(timeout=30)[:2] == (job_id, 2), "the dispatcher was woken"
    attempt = claimed(store, job_id).attempt
    assert ask("pause") == ask("pause") == (202, "pausing")
    assert ask("resume") == ask("resume") == (200, "running")
    assert ask("pause") == (202, "pausing")
    assert store.hand_back(job_id, attempt, reason="r") is Status.PAUSED
    assert ask("resume") == (200, "queued")
    claimed(store, job_id)
    assert ask("cancel") == (202, "cancelling")
    refused = client.post(f"/v1/jobs/{job_id}/pause")
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")
    assert "is cancelling" in refused.json()["detail"]
    allowed = ["paused", "pausing", "queued", "running"]
    assert refused.json()["context"] == {"status": "cancelling", "allowed_from": allowed}
    assert client.post(f"/v1/jobs/{job_id}/resume").status_code == 409


def test_an_unknown_job_is_a_404_everywhere(client: TestClient) -> None:
    ids = ("job_" + "0" * 32, "x", "job_%00", "job_" + "A" * 32, "..%2f..", "%F0%9F%98%80")
    actions = ("/pause", "/resume", "/cancel")
    parts = ("", "/events", "/metrics", "/checkpoints", "/samples", *actions)
    for job_id, part in product(ids, parts):
        method = "POST" if part in actions else "GET"
        response = client.request(method, f"/v1/jobs/{job_id}{part}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), (job_id, part)
