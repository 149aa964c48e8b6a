"""Score jobs over HTTP: what they may ask for, what does not fit them, and the download of their results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.bulk import RESULTS
from jobs.settings import Settings
from jobs.spec import Job, NewShard
from jobs.sql_store import SqlStore
from jobs.states import Status


@pytest.fixture
def score(roots: Path) -> dict[str, Any]:
    (roots / "items.jsonl").write_text('"a"\n"b"\n')
    return {"type": "score", "config": {"items_file": "items.jsonl", "checkpoint": {"every_items": 2}}}


def create(client: TestClient, spec: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=spec, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


def claimed(store: SqlStore, job_id: str) -> Job:
    job = store.claim(job_id, 1, worker="w", lease_s=60)
    assert job is not None
    return job


def write_shard(store: SqlStore, settings: Settings, job: Job, index: int, content: bytes) -> None:
    path = f"{job.id}/{job.attempt}/results-{index:06d}"
    (settings.artifacts / path).mkdir(parents=True)
    (settings.artifacts / path / RESULTS).write_bytes(content)
    lines = content.count(b"\n")
    shard = NewShard(index=index, items=lines, path=path, sha256="", bytes=len(content), cursor={})
    store.record_shard(
        job.id, job.attempt, shard, metrics={"items_total": 5}, timings={"tokens_per_s": 8.0, "shard_s": 1.0}
    )


def test_names_become_folders_and_the_default_pair_is_meant(
    client: TestClient, store: SqlStore, score: dict[str, Any], roots: Path
) -> None:
    job = create(client, score)
    assert (job["type"], job["resume_from"]) == ("score", None)
    assert job["config"]["checkpoint"] == {"every_items": 2}
    assert job["links"]["results"] == f"/v1/jobs/{job['id']}/results"
    assert job["progress"]["total_steps"] is None  # nobody has counted the file yet
    assert store.get_job(job["id"]).resolved == {
        "names": {"policy": "tuned", "reference": "base"},
        "policy": {"path": str(roots / "adapter"), "base": "org/base"},
        "reference": {"path": "org/base", "base": None},
        "checkpoints": [],
        "items_file": str((roots / "items.jsonl").resolve()),
    }


def test_a_checkpoint_that_is_scored_with_is_kept(
    client: TestClient, store: SqlStore, spec: dict[str, Any], score: dict[str, Any], settings: Settings
) -> None:
    trained = claimed(store, create(client, spec)["id"])
    saved = {"name": "step-1", "step": 1, "path": f"{trained.id}/1/step-1", "sha256": "0" * 64, "size": 1}
    store.record_checkpoint(trained.id, trained.attempt, **saved)
    score["config"]["policy"] = f"{trained.id}@step-1"
    job = create(client, score)
    assert store.get_job(job["id"]).resolved["policy"]["path"].endswith(f"{trained.id}/1/step-1")
    assert client.get(f"/v1/jobs/{trained.id}/checkpoints").json()["data"][0]["pinned"]


def test_inline_items_have_a_total_at_once(client: TestClient, score: dict[str, Any]) -> None:
    items = ["a", {"prompt": "b", "completion": "c", "id": 7, "reward": 0.5}, {"token_ids": [1, 2]}]
    score["config"] = {"items": items, "checkpoint": {"every_items": 2}}
    assert create(client, score)["progress"]["total_steps"] == 2


def test_results_stream_as_far_as_they_are(
    client: TestClient, store: SqlStore, settings: Settings, score: dict[str, Any]
) -> None:
    job = claimed(store, create(client, score)["id"])
    url = f"/v1/jobs/{job.id}/results"

    def results() -> tuple[bytes, str, str]:
        got = client.get(url)
        assert (got.status_code, got.headers["content-type"]) == (200, "application/jsonl")
        assert int(got.headers["content-length"]) == len(got.content)
        return got.content, got.headers["results-complete"], got.headers["results-items"]

    assert results() == (b"", "false", "0")
    write_shard(store, settings, job, 0, b'{"index":0}\n{"index":1}\n')
    assert results() == (b'{"index":0}\n{"index":1}\n', "false", "2")
    progress = client.get(f"/v1/jobs/{job.id}").json()["progress"]
    assert (progress["step"], progress["total_steps"]) == (1, 3)  # five items by two
    assert progress["latest"] == {"items_total": 5, "tokens_per_s": 8.0, "shard_s": 1.0}
    write_shard(store, settings, job, 1, b'{"index":2}\n')
    store.finish(job.id, job.attempt, Status.SUCCEEDED, result={})
    assert results() == (b'{"index":0}\n{"index":1}\n{"index":2}\n', "true", "3")
    whole = client.get(url)
    known = whole.headers["etag"]
    assert client.get(url, headers={"If-None-Match": known}).status_code == 304
    rest = client.get(
        url, headers={"Range": "bytes=20-", "If-Range": known}
    )  # from the first shard into the second
    assert (rest.status_code, rest.content) == (206, whole.content[20:])
    assert client.head(url).headers["content-length"] == str(len(whole.content))


def test_what_only_a_training_run_has_is_empty_or_refused(
    client: TestClient, spec: dict[str, Any], score: dict[str, Any]
) -> None:
    url = create(client, score)["links"]["self"]
    for part in ("checkpoints", "samples"):
        assert client.get(f"{url}/{part}").json()["data"] == []
    assert client.get(f"{url}/metrics").json()["series"] == []
    refused = client.post("/v1/jobs", json=score | {"resume_from": f"job_{'0' * 32}@final"})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == "/resume_from"
    missing = client.get(create(client, spec)["links"]["self"] + "/results")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_results")


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({}, "/config"),
        ({"items": ["a"], "items_file": "items.jsonl"}, "/config"),
        ({"items": []}, "/config/items"),
        ({"items": [7]}, "/config/items/0"),
        ({"items": [{"prompt": "a"}]}, "/config/items/0"),
        ({"items": ["a"], "quantities": ["perplexity"]}, "/config/quantities/0"),
        ({"items": ["a"], "top_k": 2}, "/config"),
        ({"items": ["a"], "temperature": 0.0}, "/config/temperature"),
        ({"items": ["a"], "checkpoint": {"every_items": 0}}, "/config/checkpoint/every_items"),
    ],
)
def test_a_misfit_is_a_422_that_points_at_the_place(
    client: TestClient, score: dict[str, Any], config: dict[str, Any], pointer: str
) -> None:
    refused = client.post("/v1/jobs", json=score | {"config": config})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["pointer"] == pointer, json.dumps(refused.json())


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "nowhere.jsonl"])
def test_a_file_must_be_there_and_below_the_roots(
    client: TestClient, score: dict[str, Any], name: str
) -> None:
    score["config"]["items_file"] = name
    refused = client.post("/v1/jobs", json=score)
    assert (refused.status_code, refused.json()["code"]) in {
        (422, "path_not_allowed"),
        (422, "file_not_found"),
    }


def test_results_are_their_owner_s(
    keyed_client: TestClient, new_key: Callable[[], dict[str, str]], score: dict[str, Any]
) -> None:
    mine, other = new_key(), new_key()
    url = keyed_client.post("/v1/jobs", json=score, headers=mine).json()["links"]["results"]
    assert keyed_client.get(url, headers=mine).status_code == 200
    stranger = keyed_client.get(url, headers=other)
    assert (stranger.status_code, stranger.json()["code"]) == (404, "not_found")
