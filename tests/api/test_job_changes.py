"""PATCH and DELETE of a job, its place in the queue, and what becomes of its idempotency key."""

from typing import Any

from starlette.testclient import TestClient

from jobs.spec import JobFailure
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.api.acting import claimed, create, saved


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_a_patch_changes_what_it_names(client: TestClient, spec: dict[str, Any]) -> None:
    job = create(client, spec | {"name": "first", "metadata": {"team": "rl", "draft": "yes"}})
    url = job["links"]["self"]
    patch = {"name": "second", "metadata": {"draft": None, "run": "2"}, "priority": 9}
    answer = client.patch(url, json=patch)
    assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
    changed = answer.json()
    assert (changed["name"], changed["metadata"], changed["priority"]) == (
        "second",
        {"team": "rl", "run": "2"},
        9,
    )
    assert client.get(url).json() == changed
    assert client.patch(url, json=patch).json() == changed, "a repeat is the same"
    assert client.patch(url, json={}).json() == changed
    cleared = client.patch(url, json={"name": None, "metadata": None}).json()
    assert (cleared["name"], cleared["metadata"], cleared["priority"]) == (None, {}, 9)
    merge = client.patch(
        url, content='{"name":"m"}', headers={"Content-Type": "application/merge-patch+json"}
    )
    assert merge.json()["name"] == "m"


def test_a_patch_for_another_version_is_refused(client: TestClient, spec: dict[str, Any]) -> None:
    url = create(client, spec)["links"]["self"]
    for tags in ('"2"', '"0", "7"', 'W/"1"', "1", "nonsense", ""):
        refused = client.patch(url, json={"name": "x"}, headers={"If-Match": tags})
        assert code_of(refused) == (412, "version_conflict"), tags
        assert refused.json()["context"] == {"version": 1}
    for version, tags in ((2, '"1"'), (3, '"7", "2"'), (4, "*")):
        answer = client.patch(url, json={"name": tags}, headers={"If-Match": tags})
        assert (answer.status_code, answer.headers["etag"]) == (200, f'"{version}"')


MISFITS: list[Any] = [
    {"priority": None},
    {"priority": 10},
    {"priority": "5"},
    {"name": ""},
    {"name": "x" * 201},
    {"metadata": {"": "x"}},
    {"metadata": {"k": 1}},
    {"metadata": {f"k{n}": None for n in range(33)}},
    {"status": "succeeded"},
    [],
]


def test_a_patch_that_does_not_fit(client: TestClient, spec: dict[str, Any]) -> None:
    url = create(client, spec)["links"]["self"]
    for patch in MISFITS:
        assert code_of(client.patch(url, json=patch)) == (422, "validation_error"), patch
    assert client.get(url).headers["etag"] == '"1"'


def test_of_a_job_that_has_ended_name_and_metadata_change(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    job = create(client, spec)
    store.finish(job["id"], claimed(store, job["id"]).attempt, Status.SUCCEEDED)
    url = job["links"]["self"]
    refused = client.patch(url, json={"priority": 9, "name": "x"})
    assert code_of(refused) == (409, "invalid_state")
    assert refused.json()["context"]["allowed_from"] == [
        "cancelling",
        "paused",
        "pausing",
        "queued",
        "running",
    ]
    changed = client.patch(url, json={"name": "x", "metadata": {"kept": "yes"}}).json()
    assert (changed["name"], changed["metadata"], changed["status"]) == ("x", {"kept": "yes"}, "succeeded")
    many = {f"k{n}": "v" for n in range(16)}
    assert code_of(client.patch(url, json={"metadata": many})) == (422, "too_much_metadata")


def test_a_higher_priority_goes_to_the_front_of_the_queue(
    client: TestClient, store: SqlStore, broker: Any, spec: dict[str, Any]
) -> None:
    first, second = (create(client, spec)["id"] for _ in range(2))
    for job_id in (first, second):
        assert broker.published.get(timeout=30)[:2] == (job_id, 1)

    def places() -> list[Any]:
        return [client.get(f"/v1/jobs/{job_id}").json()["queue"]["position"] for job_id in (first, second)]

    assert places() == [1, 2]
    assert client.patch(f"/v1/jobs/{second}", json={"priority": 9}).json()["queue"] == {
        "position": 1,
        "reason": "waiting_for_worker",
    }
    assert places() == [2, 1]
    assert broker.published.get(timeout=30)[:2] == (second, 2), "sent again, with its new priority"
    claimed(store, second)
    assert places() == [1, None]
    assert client.get(f"/v1/jobs/{second}").json()["queue"] == {"position": None, "reason": None}


def test_a_job_that_has_ended_can_be_deleted_once(client: TestClient, spec: dict[str, Any]) -> None:
    job = create(client, spec)
    url = job["links"]["self"]
    refused = client.delete(url)
    assert code_of(refused) == (409, "invalid_state")
    assert "is queued" in refused.json()["detail"]
    ended = ["cancelled", "failed", "succeeded"]
    assert refused.json()["context"] == {"status": "queued", "allowed_from": ended}
    client.post(f"{url}/cancel")
    gone = client.delete(url)
    assert (gone.status_code, gone.content) == (204, b"")
    for again in (
        client.delete(url),
        client.get(url),
        client.patch(url, json={}),
        client.get(f"{url}/events"),
    ):
        assert code_of(again) == (404, "not_found")
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_job_that_others_need_stays(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    name = saved(store, create(client, spec)["id"], 3)
    source = name.partition("@")[0]
    store.finish(source, 1, Status.SUCCEEDED)
    user = create(client, spec | {"resume_from": name})["id"]
    refused = client.delete(f"/v1/jobs/{source}")
    assert code_of(refused) == (409, "in_use")
    assert refused.json()["context"] == {"jobs": [user]}
    client.post(f"/v1/jobs/{user}/cancel")
    assert client.delete(f"/v1/jobs/{source}").status_code == 204
    assert client.get(f"/v1/jobs/{user}").json()["resume_from"] == name
    assert code_of(client.post("/v1/jobs", json=spec | {"resume_from": name})) == (422, "unknown_model")


def test_the_key_of_a_deleted_job_makes_no_other(client: TestClient, spec: dict[str, Any]) -> None:
    url = create(client, spec, **{"Idempotency-Key": "k"})["links"]["self"]
    client.patch(url, json={"name": "renamed"})
    again = create(client, spec, **{"Idempotency-Key": "k"})
    assert again["name"] == "renamed", "the job as it is now"
    client.post(f"{url}/cancel")
    client.delete(url)
    again = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert code_of(again) == (410, "deleted")
    assert create(client, spec, **{"Idempotency-Key": "l"})


def test_another_owner_can_neither_change_nor_delete(
    keyed_client: TestClient, new_key: Any, spec: dict[str, Any]
) -> None:
    mine, theirs = new_key(), new_key()
    url = create(keyed_client, spec, **mine)["links"]["self"]
    keyed_client.post(f"{url}/cancel", headers=mine)
    assert code_of(keyed_client.patch(url, json={"name": "x"}, headers=theirs)) == (404, "not_found")
    assert code_of(keyed_client.delete(url, headers=theirs)) == (404, "not_found")
    assert keyed_client.delete(url, headers=mine).status_code == 204


def test_a_failure_names_no_folder(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    job_id = create(client, spec)["id"]
    tail = ('  File "/app/worker/run.py", line 3, in run', "OSError: [Errno 2] '/srv/secret place/models/x'")
    failure = JobFailure(
        code="model_load_failed", detail="cannot load /srv/secret/x: no weights", log_tail=tail
    )
    store.finish(job_id, claimed(store, job_id).attempt, Status.FAILED, error=failure)
    shown = [client.get(f"/v1/jobs/{job_id}{part}").text for part in ("", "/events")]
    assert "cannot load …/x: no weights" in shown[0]
    assert all(word not in text for word in ("/srv", "/app", "secret") for text in shown)
