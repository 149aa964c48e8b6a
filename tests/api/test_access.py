"""Every operation of the OpenAPI document × every kind of key that should not open it, and one that should.

A new operation is in these tests as soon as it is in the document (tests/api/operations.py).
"""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.keys import ALL_SCOPES
from jobs.sql_store import SqlStore
from tests.api.operations import (
    OPEN_PATHS,
    RESOURCES,
    Operation,
    World,
    fresh_owner,
    made_url,
    missing_url,
    opened,
    operations,
    problem_of,
    resource,
    send,
)

NewKey = Callable[..., dict[str, str]]


pytestmark = pytest.mark.usefixtures("short_streams")


@pytest.fixture
def world(store: SqlStore, keyed_client: TestClient, spec: dict[str, Any], answering: None) -> World:
    return World(store, keyed_client, spec)


@pytest.fixture
def guarded(keyed_client: TestClient) -> list[Operation]:
    assert isinstance(keyed_client.app, FastAPI)
    found = [each for each in operations(keyed_client.app) if each.path not in OPEN_PATHS]
    assert len(found) >= 18
    return found


def test_the_probes_need_no_key(keyed_client: TestClient) -> None:
    for path in OPEN_PATHS:
        assert keyed_client.get(path).status_code == 200


def test_every_operation_but_the_probes_needs_a_key_in_force(
    guarded: list[Operation], world: World, new_key: NewKey
) -> None:
    good = new_key()["Authorization"]
    known, unknown = good.split("_")[1], "0" * 8
    assert known != unknown
    refused = [
        None,
        "Bearer",
        "Bearer x",
        "Basic eDp5",
        "Bearer kl_a_b",
        "Bearer kl__",
        good + "!",
        f"Bearer kl_{known}_{'A' * 43}",  # the shape of a key, another secret
        f"Bearer kl_{unknown}_{good[-43:]}",  # a secret of ours under nobody's id
        new_key(expires_in_s=-1.0)["Authorization"],
        _revoked(world.store, new_key)["Authorization"],
    ]
    for operation in guarded:
        for value in refused:
            # A body that is no JSON either: the key comes first.
            headers = {"Content-Type": "application/json"} | ({"Authorization": value} if value else {})
            response = world.client.request(
                operation.method, missing_url(operation), headers=headers, content=b"{"
            )
            assert response.status_code == 401, (operation.name, value)
            assert problem_of(response).get("code", "unauthenticated") == "unauthenticated"
            assert response.headers["www-authenticate"] == "Bearer"


def _revoked(store: SqlStore, new_key: NewKey) -> dict[str, str]:
    key = new_key()
    store.revoke_key(key["Authorization"].split("_")[1])
    return key


def test_every_operation_needs_the_one_scope_that_it_names(
    guarded: list[Operation], world: World, new_key: NewKey
) -> None:
    without = {scope: new_key(scopes=ALL_SCOPES - {scope}) for scope in ALL_SCOPES}
    only = {scope: new_key(scopes={scope}) for scope in ALL_SCOPES}
    nothing = new_key(scopes=())
    for operation in guarded:
        url, scope = missing_url(operation), operation.scope
        if scope is None:
            assert send(operation, world, url, nothing).status_code == 200, operation.name
            continue
        refused = send(operation, world, url, without[scope])  # type: ignore[index]
        assert refused.status_code == 403, (operation.name, refused.text)
        if problem := problem_of(refused):
            assert (problem["code"], problem["context"]) == ("insufficient_scope", {"scope": scope})
        passed = send(operation, world, url, only[scope])  # type: ignore[index]
        assert opened(passed), (operation.name, passed.text)
    assert [o.name for o in guarded if o.scope is None] == ["info", "whoami"]


def test_what_is_anothers_is_answered_like_what_is_not_there(
    guarded: list[Operation], world: World, new_key: NewKey
) -> None:
    """Byte by byte, apart from the request's id and path; and it stays as it was."""
    me, stranger = fresh_owner(), fresh_owner()
    mine = new_key(owner=me)
    tried = 0
    for operation in guarded:
        if not operation.parameters:
            continue
        theirs, nobodys = made_url(operation, world, stranger), missing_url(operation)
        answers = [send(operation, world, url, mine) for url in (theirs, nobodys)]
        assert answers[1].status_code == 404, (operation.name, answers[1].text)
        if all(resource(operation, name).shared for name in operation.parameters):
            assert answers[0].status_code < 300, (operation.name, answers[0].text)
            continue
        tried += 1
        assert _comparable(answers[0]) == _comparable(answers[1]), operation.name
        if "job_id" in world.values:
            job = world.store.get_job(world.values["job_id"], stranger)
            assert job.version == 2, f"{operation.name} changed a stranger's job"  # made, cancelled
    assert tried >= 10


def _comparable(answer: Any) -> tuple[int, Any, list[tuple[str, str]]]:
    body = problem_of(answer)
    assert body.pop("request_id", None) in (None, answer.headers["x-request-id"])
    body.pop("instance", None)
    changing = ("x-request-id", "ratelimit", "content-length", "date")
    return (
        answer.status_code,
        list(body.items()),
        sorted((name, value) for name, value in answer.headers.items() if name not in changing),
    )


def test_ones_own_things_are_within_reach(guarded: list[Operation], world: World, new_key: NewKey) -> None:
    me = fresh_owner()
    mine = new_key(owner=me)
    for operation in guarded:
        response = send(operation, world, made_url(operation, world, me), mine)
        assert opened(response), (operation.name, response.text)
        if response.status_code == 404:
            assert problem_of(response).get("code") != "not_found", operation.name


def test_lists_hold_nothing_of_a_stranger(guarded: list[Operation], world: World, new_key: NewKey) -> None:
    stranger = fresh_owner()
    ids = [each.make(world, stranger) for each in RESOURCES.values() if not each.shared]
    mine = new_key()
    for operation in guarded:
        if operation.method == "GET" and not operation.parameters:
            text = send(operation, world, operation.path, mine).text
            assert not [one for one in [stranger, *ids] if one in text], operation.name


def test_keys_of_one_owner_share_its_things(world: World, new_key: NewKey) -> None:
    first, second = new_key(owner="team"), new_key(owner="team", scopes={"jobs:read"})
    made = world.client.post("/v1/jobs", json=world.spec, headers=first)
    assert world.client.get(made.headers["location"], headers=second).status_code == 200
    refused = world.client.post("/v1/jobs", json=world.spec, headers=second)
    assert refused.json()["detail"] == "this needs a key with the scope jobs:write"


def test_open_mode_needs_no_key_but_a_loopback_name(app: FastAPI, client: TestClient) -> None:
    hosts = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "0.0.0.0", "[", ""]
    for operation in operations(app):
        if operation.path in OPEN_PATHS:
            continue
        for host in hosts:
            response = client.request(operation.method, missing_url(operation), headers={"Host": host})
            assert response.status_code == 403, operation.name
            assert problem_of(response).get("code", "host_not_allowed") == "host_not_allowed"


def test_an_operation_with_an_unknown_parameter_fails_with_a_hint() -> None:
    operation = Operation("GET", "/v1/things/{thing_id}", {"operationId": "things_get"})
    with pytest.raises(AssertionError, match="nothing here makes a thing_id"):
        missing_url(operation)
