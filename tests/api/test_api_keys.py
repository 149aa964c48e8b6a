"""/v1/api-keys and /v1/whoami: made once shown once, listed without secrets, revoked at once."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api.keyring import Keyring
from jobs import keys
from jobs.schema import metadata
from jobs.sql_store import SqlStore

NewKey = Callable[..., dict[str, str]]


@pytest.fixture
def admin(new_key: NewKey) -> dict[str, str]:
    return new_key(owner="default")


def bearer(document: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {document['key']}"}


def make(client: TestClient, admin: dict[str, str], **wanted: Any) -> dict[str, Any]:
    response = client.post(
        "/v1/api-keys", json={"name": "n", "scopes": ["jobs:read"]} | wanted, headers=admin
    )
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/v1/api-keys/{response.json()['id']}"
    assert response.headers["cache-control"] == "no-store"
    made: dict[str, Any] = response.json()
    return made


def test_a_key_that_was_made_works_at_once_and_is_shown_once(
    keyed_client: TestClient, admin: dict[str, str]
) -> None:
    made = make(keyed_client, admin, owner="team-1", scopes=["jobs:read", "score"], expires_in_s=3600)
    parsed = keys.parse(made["key"])
    assert parsed is not None
    assert parsed.id == made["id"]
    who = keyed_client.get("/v1/whoami", headers=bearer(made)).json()
    assert (who["owner"], who["scopes"]) == ("team-1", ["jobs:read", "score"])
    shown = keyed_client.get(f"/v1/api-keys/{made['id']}", headers=admin).json()
    assert shown == who["key"]
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert shown["expires_at"] > shown["created_at"]
    assert shown["revoked_at"] is shown["last_used_at"] is None


def test_the_owner_is_the_callers_unless_another_is_named(
    keyed_client: TestClient, admin: dict[str, str]
) -> None:
    assert make(keyed_client, admin)["owner"] == "default"
    assert make(keyed_client, admin, owner="team")["owner"] == "team"


def test_the_databases_tables_the_log_and_refusals_hold_no_secret(
    keyed_client: TestClient, store: SqlStore, admin: dict[str, str]
) -> None:
    with capture_logs() as logs:
        made = [make(keyed_client, admin | {"Idempotency-Key": f"k{i}"}) for i in range(3)]
        answers = _answers_to_keys_in_wrong_places(keyed_client, admin, made[0]["key"])
    with store.reading() as connection:
        dump = "".join(str(connection.execute(select(table)).all()) for table in metadata.sorted_tables)
    assert made[0]["id"] in dump
    assert len(logs) == len(made) + len(answers)
    for text in [dump, str(logs), *(answer.text + str(answer.headers) for answer in answers)]:
        for one in [*(one["key"] for one in made), admin["Authorization"]]:
            assert one[-43:] not in text


def _answers_to_keys_in_wrong_places(client: TestClient, admin: dict[str, str], key: str) -> list[Any]:
    return [
        client.get("/v1/api-keys", headers=admin),
        client.get("/v1/api-keys", params={"after": key, "owner": key}, headers=admin),
        client.get(f"/v1/api-keys/{key}", headers=admin),
        client.get("/v1/whoami", headers={"Authorization": f"Bearer {key}!"}),
        client.post("/v1/api-keys", json={"name": 1, "owner": key, "scopes": [key]}, headers=admin),
        client.post("/v1/jobs", json={key: 1}, headers=admin),
        client.delete(f"/v1/api-keys/{key}", headers=admin),
    ]


def test_a_repeat_makes_no_second_key_and_shows_no_secret(
    keyed_client: TestClient, admin: dict[str, str]
) -> None:
    repeated = admin | {"Idempotency-Key": "k"}
    made = make(keyed_client, repeated, scopes=["score", "files"])
    again = keyed_client.post(
        "/v1/api-keys", json={"name": "n", "scopes": ["files", "score", "files"]}, headers=repeated
    )
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.json() == made | {"key": None}
    assert keyed_client.get("/v1/whoami", headers=bearer(made)).status_code == 200
    other = keyed_client.post("/v1/api-keys", json={"name": "m", "scopes": ["files"]}, headers=repeated)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_revoked_key_is_refused_at_once_and_what_it_made_stays(
    keyed_client: TestClient, admin: dict[str, str], spec: dict[str, Any]
) -> None:
    made = make(keyed_client, admin, owner="team", scopes=["jobs:read", "jobs:write"])
    sibling = make(keyed_client, admin, owner="team")
    job = keyed_client.post("/v1/jobs", json=spec, headers=bearer(made)).json()
    url = f"/v1/jobs/{job['id']}"
    assert keyed_client.get(url, headers=bearer(made)).status_code == 200
    for _ in range(2):
        assert keyed_client.delete(f"/v1/api-keys/{made['id']}", headers=admin).status_code == 204
        assert keyed_client.get(url, headers=bearer(made)).status_code == 401
    assert keyed_client.get(url, headers=bearer(sibling)).status_code == 200
    shown = keyed_client.get(f"/v1/api-keys/{made['id']}", headers=admin).json()
    assert shown["revoked_at"] >= shown["created_at"]


def test_an_admin_lists_the_keys_of_all_owners_but_sees_no_jobs_of_theirs(
    keyed_client: TestClient, admin: dict[str, str], new_key: NewKey, spec: dict[str, Any]
) -> None:
    made = [make(keyed_client, admin, owner=f"team-{i % 2}", name=f"n{i}")["id"] for i in range(5)]
    first = keyed_client.get("/v1/api-keys", params={"limit": 2}, headers=admin)
    assert [key["id"] for key in first.json()["data"]] == made[:-3:-1]
    seen, link = first.json()["data"], first.headers.get("link")
    while link:
        page = keyed_client.get(link[1 : link.index(">")], headers=admin)
        seen, link = seen + page.json()["data"], page.headers.get("link")
    assert [key["id"] for key in seen[:5]] == made[::-1]
    assert len(seen) == 6  # and the admin's own
    ones = keyed_client.get("/v1/api-keys", params={"owner": "team-1"}, headers=admin).json()
    assert [key["name"] for key in ones["data"]] == ["n3", "n1"]
    assert not ones["has_more"]
    theirs = keyed_client.post("/v1/jobs", json=spec, headers=new_key()).json()["id"]
    assert keyed_client.get(f"/v1/jobs/{theirs}", headers=admin).status_code == 404
    bad = keyed_client.get("/v1/api-keys", params={"after": "job_1"}, headers=admin)
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_cursor")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "/name"),
    ({"name": "a\nb"}, "/name"),
    ({"scopes": []}, "/scopes"),
    ({"scopes": ["jobs"]}, "/scopes/0"),
    ({"owner": "Team"}, "/owner"),
    ({"owner": "a/b"}, "/owner"),
    ({"owner": "team\n"}, "/owner"),
    ({"owner": "t" * 65}, "/owner"),
    ({"expires_in_s": 0}, "/expires_in_s"),
    ({"expires_in_s": 1, "expires_at": "2999-01-01T00:00:00Z"}, "/expires_at"),
    ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at"),
    ({"expires_at": "0001-01-01T00:00:00+14:00"}, "/expires_at"),
    ({"expires_at": "9999-12-31T23:59:59-14:00"}, "/expires_at"),
    ({"expires_at": "2030-01-01T00:00:00"}, "/expires_at"),  # whose midnight?
    ({"expires_at": 2_000_000_000}, "/expires_at"),
    ({"expires_at": "2000000000"}, "/expires_at"),
    ({"id": "0a1b2c3d"}, "/id"),
]


def test_what_is_no_key_is_refused_by_its_field(keyed_client: TestClient, admin: dict[str, str]) -> None:
    for change, pointer in REFUSED:
        wanted = {"name": "n", "scopes": ["score"]} | change
        response = keyed_client.post("/v1/api-keys", json=wanted, headers=admin)
        assert response.status_code == 422, change
        assert response.json()["errors"][0]["pointer"] == pointer
    assert len(keyed_client.get("/v1/api-keys", headers=admin).json()["data"]) == 1  # the admin's own


def test_an_end_can_be_a_moment_or_a_time(keyed_client: TestClient, admin: dict[str, str]) -> None:
    assert make(keyed_client, admin)["expires_at"] is None
    soon = keyed_client.get("/v1/whoami", headers=admin).json()["key"]["created_at"][:4]
    at = f"{int(soon) + 2}-01-31T12:00:00.000Z"
    assert make(keyed_client, admin, expires_at=at)["expires_at"] == at
    assert make(keyed_client, admin, expires_at=at[:-5] + "+02:00")["expires_at"] == at.replace("T12", "T10")


def test_an_expired_key_is_refused(keyed_client: TestClient, new_key: NewKey, store: SqlStore) -> None:
    soon = new_key(expires_in_s=0.25)
    assert keyed_client.get("/v1/jobs", headers=soon).status_code == 200
    key_id = soon["Authorization"].split("_")[1]
    while store.key_in_force(key_id):
        pass
    # The cached key ended with the stored one, though it was looked up less than a second ago.
    assert keyed_client.get("/v1/jobs", headers=soon).status_code == 401


def test_many_requests_of_a_key_cost_one_lookup(
    keyed_client: TestClient, new_key: NewKey, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, asked = new_key(), []
    keyring: Keyring = keyed_client.app.state.parts.keyring  # type: ignore[attr-defined]
    monkeypatch.setattr(keyring, "_monotonic", lambda: 7.0)
    look_up = store.key_in_force
    monkeypatch.setattr(store, "key_in_force", lambda key_id: asked.append(key_id) or look_up(key_id))
    for headers in (mine, {"Authorization": mine["Authorization"][:-43] + "A" * 43}):
        statuses = {keyed_client.get("/v1/models", headers=headers).status_code for _ in range(10)}
        assert len(statuses) == 1
    assert asked == [mine["Authorization"].split("_")[1]]


def test_open_mode_is_everybody_called_local(client: TestClient) -> None:
    who = client.get("/v1/whoami").json()
    assert (who["owner"], who["scopes"], who["key"]) == ("local", sorted(keys.ALL_SCOPES), None)
    assert make(client, {})["owner"] == "local"


def test_the_last_use_is_shown_when_it_was_written(keyed_client: TestClient, admin: dict[str, str]) -> None:
    keyring: Keyring = keyed_client.app.state.parts.keyring  # type: ignore[attr-defined]
    assert keyed_client.get("/v1/whoami", headers=admin).json()["key"]["last_used_at"] is None
    keyring.write_uses()
    key = keyed_client.get("/v1/whoami", headers=admin).json()["key"]
    assert key["last_used_at"] >= key["created_at"]
