"""What a client may ask of a job in each state, and what comes of it: generated from the model's table."""

from itertools import product
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.spec import JobFailure
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from tests.api.acting import claimed, queued
from tests.faults.model_job import LEGAL, REQUESTS, TERMINAL

WHY = "too slow: \x00 « 日本 👩‍👩‍👧 »"
STATES = sorted({*LEGAL, *TERMINAL})


def in_state(store: SqlStore, spec: dict[str, Any], state: str) -> str:
    """The id of a job that has come to this state."""
    job_id = queued(store, spec)
    if state in ("paused", "cancelled"):
        store.request(job_id, {"paused": Action.PAUSE, "cancelled": Action.CANCEL}[state])
    elif state != "queued":
        attempt = claimed(store, job_id).attempt
        if state in ("pausing", "cancelling"):
            store.request(job_id, {"pausing": Action.PAUSE, "cancelling": Action.CANCEL}[state])
        elif state != "running":
            error = JobFailure(code="crashed", detail="d") if state == "failed" else None
            store.finish(job_id, attempt, Status(state), error=error)
    assert store.get_job(job_id).public_status == state
    return job_id


def seen(store: SqlStore, job_id: str) -> tuple[int, list[str]]:
    return store.get_job(job_id).version, [event.type for event in store.list_events(job_id)]


def test_every_action_in_every_state(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    for action, state in product(REQUESTS, STATES):
        job_id, case = in_state(store, spec, state), f"{action} while {state}"
        url, (version, types) = f"/v1/jobs/{job_id}", seen(store, job_id)
        before = client.get(url).json()
        body = {} if action == "resume" else {"json": {"reason": WHY}}
        answer = client.post(f"{url}/{action}", **body)
        if state not in REQUESTS[action]:
            assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state"), case
            assert answer.json()["context"] == {"status": state, "allowed_from": sorted(REQUESTS[action])}
            assert seen(store, job_id) == (version, types), case
            continue
        after, event = REQUESTS[action][state]
        job = answer.json()
        expected = (202 if after in ("pausing", "cancelling") else 200, after, after in TERMINAL)
        assert (answer.status_code, job["status"], job["done"]) == expected, case
        once = (version + 1, [*types, event]) if event else (version, types)
        assert seen(store, job_id) == once, case
        assert answer.headers["etag"] == f'"{once[0]}"'
        if event:
            assert job["reason"] == body.get("json", {}).get("reason"), case
            told = store.list_events(job_id)[-1].data
            assert told == ({"reason": WHY} if body else {}), case
            assert (job["cancel_requested_at"] == job["updated_at"]) == (action == "cancel"), case
        else:
            assert job == before, case
        again = client.post(f"{url}/{action}", **({"json": {"reason": "another"}} if body else {}))
        assert (again.status_code, again.json()) == (answer.status_code, job), f"{case}, again"
        assert seen(store, job_id) == once, f"{case}, again"


def test_deletion_and_priority_in_every_state(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    for state in STATES:
        job_id = in_state(store, spec, state)
        url, (version, types) = f"/v1/jobs/{job_id}", seen(store, job_id)
        moved = client.patch(url, json={"priority": 9})
        assert moved.status_code == (409 if state in TERMINAL else 200), state
        if state in TERMINAL:
            assert moved.json()["context"] == {"status": state, "allowed_from": sorted(LEGAL)}
        assert seen(store, job_id) == (version + (state not in TERMINAL), types), state
        deleted = client.delete(url)
        assert deleted.status_code == (204 if state in TERMINAL else 409), state
        assert client.get(url).status_code == (404 if state in TERMINAL else 200), state
        if state not in TERMINAL:
            assert deleted.json()["context"] == {"status": state, "allowed_from": sorted(TERMINAL)}


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_what_cannot_be_kept_is_not_accepted(
    client: TestClient, store: SqlStore, spec: dict[str, Any], action: str
) -> None:
    job_id = in_state(store, spec, "running")
    url = f"/v1/jobs/{job_id}/{action}"
    unfit: list[Any] = [{"reason": ""}, {"reason": "x" * 201}, {"reason": 5}, [], "why", {"save": True}]
    endings: list[Any] = [{"save_checkpoint": False}, {"grace_period_s": 5}]
    if action == "cancel":
        endings = [{"save_checkpoint": no} for no in (None, 0, "no")]
        endings += [{"grace_period_s": no} for no in (-1, 3600.1, "5", True)]
    for body in [*unfit, *endings]:
        assert client.post(url, json=body).status_code == 422, body
    form = client.post(url, content='{"reason":"x"}', headers={"Content-Type": "text/plain"})
    assert (form.status_code, form.json()["code"]) == (415, "unsupported_media_type")
    assert client.post(url, content="{", headers={"Content-Type": "application/json"}).status_code == 400
    assert store.get_job(job_id).public_status == "running"
    for nothing in (b"", b"{}", b"null", b'{"reason":null}'):
        answer = client.post(url, content=nothing, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["reason"]) == (202, None), nothing


def test_the_last_reason_stands_until_a_resume(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    url = f"/v1/jobs/{(job_id := in_state(store, spec, 'running'))}"
    client.post(f"{url}/pause", json={"reason": "lunch"})
    store.hand_back(job_id, 1, reason="a client asked for it")
    paused = client.get(url).json()
    assert (paused["status"], paused["reason"], paused["cancel_requested_at"]) == ("paused", "lunch", None)
    assert client.post(f"{url}/resume").json()["reason"] is None
    attempt = claimed(store, job_id).attempt
    asked = client.post(f"{url}/cancel", json={"reason": "x" * 200}).json()
    store.hand_back(job_id, attempt, reason="a client asked for it")
    job = client.get(url).json()
    assert (job["status"], job["reason"]) == ("cancelled", "x" * 200)
    assert job["cancel_requested_at"] == asked["cancel_requested_at"] <= job["finished_at"]


@pytest.mark.parametrize("state", ["running", "pausing"])
def test_the_first_cancel_says_how_the_process_ends(
    client: TestClient, store: SqlStore, spec: dict[str, Any], state: str
) -> None:
    """In the row that its worker reads with the next heartbeat, in the transaction of the cancel itself."""
    wishes: list[tuple[dict[str, Any], tuple[bool, float | None]]] = [
        ({}, (True, None)),
        ({"grace_period_s": 0}, (True, 0.0)),
        ({"save_checkpoint": False}, (False, None)),
        ({"save_checkpoint": True, "grace_period_s": 3600.0}, (True, 3600.0)),
    ]
    for body, kept in wishes:
        job_id = in_state(store, spec, state)
        url = f"/v1/jobs/{job_id}/cancel"
        assert client.post(url, json=body).status_code == 202
        assert client.post(url, json={"save_checkpoint": not kept[0], "grace_period_s": 1}).status_code == 202
        job = store.heartbeat(job_id, 1, lease_s=60)
        assert (job.cancel_saves, job.cancel_grace_s) == kept
        told = {name: wish for name, wish in body.items() if wish is not True}
        assert store.list_events(job_id)[-1].data == told
    job_id = in_state(store, spec, "paused")
    assert client.post(f"/v1/jobs/{job_id}/cancel", json={"save_checkpoint": False}).status_code == 200
    assert store.list_events(job_id)[-1].data == {}  # there was no process


def test_a_failure_says_of_which_attempt_and_whether_a_repeat_may_help(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    for code, may_help in (("worker_lost", True), ("nan_loss", False), ("of another release", False)):
        job_id = in_state(store, spec, "running")
        store.hand_back(job_id, 1, reason="r")
        claimed(store, job_id)
        store.finish(job_id, 2, Status.FAILED, error=JobFailure(code=code, detail="d"))
        error = client.get(f"/v1/jobs/{job_id}").json()["error"]
        assert (error["attempt"], error["retryable"]) == (2, may_help)


def test_a_run_is_stalled_when_it_lives_without_progress(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    job_id, clock = queued(store, spec), [1000.0]
    bound = SqlStore(store.engine.url.render_as_string(hide_password=False), now=lambda: clock[0])
    assert bound.claim(job_id, 1, worker="w", lease_s=1e12)
    stalled = []
    for clock[0] in (1600.0, 1600.5):  # progress was at 1000
        bound.heartbeat(job_id, 1, lease_s=1e12)
        stalled.append(client.get(f"/v1/jobs/{job_id}").json()["worker"]["stalled"])
    bound.set_phase(job_id, 1, "rollout")
    stalled.append(client.get(f"/v1/jobs/{job_id}").json()["worker"]["stalled"])
    bound.close()
    assert stalled == [False, True, False]
