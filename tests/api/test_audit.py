"""The audit trail of the HTTP API: every change that a known caller asked for has a row, and nothing else has."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.audit import AuditEntry, violations
from jobs.errors import StoreUnavailable
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api.operations import OPEN_PATHS, World, fresh_owner, made_url, operations, send

NewKey = Callable[..., dict[str, str]]


def entries(store: SqlStore) -> list[AuditEntry]:
    return [row.entry for row in store.list_audit()]


def test_every_operation_that_changes_something_is_recorded_and_no_other(
    keyed_client: TestClient,
    store: SqlStore,
    spec: dict[str, Any],
    new_key: NewKey,
    answering: None,
    short_streams: None,
) -> None:
    assert isinstance(keyed_client.app, FastAPI)
    world = World(store, keyed_client, spec)
    me = fresh_owner()
    mine = new_key(owner=me)
    recorded = 0
    for operation in operations(keyed_client.app):
        if operation.path in OPEN_PATHS:
            continue
        url, before = made_url(operation, world, me), len(entries(store))
        answer = send(operation, world, url, mine, extensions={})
        new = entries(store)[before:]
        if not operation.changes or operation.scope == "score":
            assert new == [], operation.name
            continue
        recorded += 1
        (entry,) = new
        assert (entry.owner, entry.operation, entry.status) == (me, operation.name, answer.status_code)
        assert entry.key_id == mine["Authorization"].split("_")[1]
        assert entry.request_id == answer.headers["x-request-id"]
        if operation.parameters:
            assert entry.resource_id == "/".join(world.values[name] for name in operation.parameters)
        elif answer.status_code < 300:
            assert entry.resource_id == answer.headers["location"].rpartition("/")[2]
    assert recorded >= 6
    assert list(violations(store)) == []


def test_what_was_refused_to_a_known_caller_is_recorded_with_its_status(
    keyed_client: TestClient, store: SqlStore, new_key: NewKey
) -> None:
    mine, weak = new_key(owner="me"), new_key(owner="weak", scopes={"jobs:read"})
    nobodys = "job_" + "0" * 32
    keyed_client.post(f"/v1/jobs/{nobodys}/cancel", headers=mine)
    keyed_client.post("/v1/jobs", json={}, headers=mine)
    keyed_client.post("/v1/api-keys", json={}, headers=weak)
    keyed_client.post("/v1/jobs/%20%0a'/cancel", headers=mine)
    keyed_client.post(
        f"/v1/jobs/{mine['Authorization'][7:]}/cancel", headers=mine
    )  # pasted in the wrong place
    keyed_client.post("/v1/jobs", json={})  # nobody we know
    seen = [(e.owner, e.operation, e.resource_id, e.status) for e in entries(store)]
    assert seen == [
        ("me", "jobs_cancel", nobodys, 404),
        ("me", "jobs_create", None, 422),
        ("weak", "api_keys_create", None, 403),
        ("me", "jobs_cancel", None, 404),
        ("me", "jobs_cancel", None, 404),
    ]


def test_open_mode_and_the_address_are_recorded(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    client.post("/v1/jobs", json=spec, headers={"X-Request-Id": "mine"})
    (entry,) = entries(store)
    assert (entry.owner, entry.key_id, entry.client, entry.request_id) == ("local", None, "127.0.0.1", "mine")


def test_over_the_rate_limit_nothing_is_recorded(
    new_app: Callable[[Settings], FastAPI], settings: Settings, store: SqlStore, new_key: NewKey
) -> None:
    app = new_app(settings.model_copy(update={"unsafe_no_auth": False, "requests_per_minute": 1}))
    mine = new_key()
    statuses = [TestClient(app).post("/v1/jobs", json={}, headers=mine).status_code for _ in range(5)]
    assert statuses == [422, 429, 429, 429, 429]
    assert len(entries(store)) == 1


def test_a_change_that_cannot_be_recorded_is_answered_503_and_its_repeat_is_recorded(
    keyed_client: TestClient,
    store: SqlStore,
    spec: dict[str, Any],
    new_key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = new_key() | {"Idempotency-Key": "k"}

    def down(_: AuditEntry) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patched:
        patched.setattr(store, "record_audit", down)
        lost = keyed_client.post("/v1/jobs", json=spec, headers=headers)
    assert (lost.status_code, lost.json()["code"]) == (503, "database_unavailable")
    assert lost.headers["x-request-id"] == lost.json()["request_id"]
    (job,) = store.list_jobs()
    again = keyed_client.post("/v1/jobs", json=spec, headers=headers)
    assert (again.status_code, again.json()["id"]) == (201, job.id)
    assert [(e.resource_id, e.status) for e in entries(store)] == [(job.id, 201)]


@pytest.mark.parametrize("audit_is_up", [True, False])
def test_an_unexpected_error_is_recorded_as_500(
    keyed_client: TestClient,
    store: SqlStore,
    new_key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
    *,
    audit_is_up: bool,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    def down(_: AuditEntry) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(store, "request", broken)
    if not audit_is_up:
        monkeypatch.setattr(store, "record_audit", down)
    answer = keyed_client.post(f"/v1/jobs/job_{'0' * 32}/cancel", headers=new_key())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert [entry.status for entry in entries(store)] == [500] * audit_is_up
