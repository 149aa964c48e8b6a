"""Both clients against the API as a process: no broker, no scorer, no worker."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from jobs.schema import metadata
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from kleash import AsyncClient, Client, KleashError
from kleash.cli import app
from tests.api.serving import serving

SPEC: dict[str, Any] = {
    "config": {
        "model": {"name": "base"},
        "data": {"prompts": ["Once upon a time"]},
        "reward": {"kind": "sentiment"},
        "optimization": {"steps": 4},
    }
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "models.json").write_text(json.dumps({"models": {"base": {"source": "org/base"}}}))
    database = SecretStr(f"sqlite:///{folder / 'kleash.db'}")
    store = SqlStore(database.get_secret_value())
    metadata.create_all(store.engine)
    store.close()
    with serving(Settings(database_url=database, models_file=folder / "models.json"), folder) as (url, _, _):
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def test_a_job_is_created_once_changed_ended_and_deleted(client: Client) -> None:
    assert client.jobs.dry_run(SPEC)["estimate"]["steps"] == 4
    job = client.jobs.create(SPEC | {"metadata": {"team": "rl"}}, idempotency_key="one")
    assert client.jobs.create(SPEC | {"metadata": {"team": "rl"}}, idempotency_key="one")["id"] == job["id"]
    changed = client.jobs.update(job["id"], name="n", metadata={"team": None, "a": "b"})
    assert (changed["name"], changed["metadata"]) == ("n", {"a": "b"})
    assert [found["id"] for found in client.jobs.iterate(metadata={"a": "b"}, limit=1)] == [job["id"]]
    assert client.jobs.list(status=["failed", "paused"])["data"] == []
    client.jobs.cancel(job["id"])
    frames = list(client.jobs.stream_events(job["id"]))
    assert (frames[0].event, frames[-1].event) == ("snapshot", "done")
    events = [event["seq"] for event in client.jobs.iterate_events(job["id"])]
    assert events == [frame.id for frame in frames[1:-1]]
    assert client.jobs.metric_rows(job["id"]) == []
    assert list(client.jobs.iterate_logs(job["id"])) == []
    client.jobs.delete(job["id"])
    with pytest.raises(KleashError) as error:
        client.jobs.get(job["id"])
    assert error.value.status in (404, 410)
    assert error.value.request_id
    assert not error.value.retryable


def test_wait_learns_of_a_change_at_once(client: Client) -> None:
    job = client.jobs.create(SPEC)
    cancelling = threading.Timer(0.4, client.jobs.cancel, [job["id"]])
    cancelling.start()
    began = time.monotonic()
    assert client.jobs.wait(job["id"], every_s=200)["status"] == "cancelled"
    assert time.monotonic() - began < 100  # the poll was held: nobody slept for 200 s
    cancelling.join()


def test_both_clients_follow_and_stream(url: str) -> None:
    async def work() -> list[str]:
        async with AsyncClient(url) as client:
            job = await client.jobs.create(SPEC)
            watching = asyncio.ensure_future(client.jobs.wait(job["id"]))
            await client.jobs.cancel(job["id"])
            return [
                (await watching)["status"],
                *[f.event async for f in client.jobs.stream_events(job["id"])][-1:],
            ]

    assert asyncio.run(work()) == ["cancelled", "done"]


def test_files_keys_and_the_rest(client: Client) -> None:
    made = client.files.create(b'"a"\n"b"\n', purpose="prompts")
    assert b"".join(client.files.content(made["id"])) == b'"a"\n"b"\n'
    assert [file["id"] for file in client.files.iterate()] == [made["id"]]
    client.files.delete(made["id"])

    key = client.api_keys.create("ci", ["score"], expires_in_s=60)
    client.api_keys.revoke(key["id"])
    assert client.api_keys.get(key["id"])["revoked_at"]
    assert [known["id"] for known in client.api_keys.iterate()] == [key["id"]]
    assert [model["id"] for model in client.models.list()["data"]] == ["base"]
    assert client.ready()["checks"]["database"] == "ok"
    assert client.ready()["status"] == "not_ready"
    assert client.queue()["running"] == client.workers()["data"].count({}) == 0
    assert client.divergences({"policy": {"probs": [1.0]}, "reference": {"probs": [1.0]}})["kl"] == 0
    assert "jobs:write" in client.whoami()["scopes"]


def test_the_problem_of_a_refusal_names_its_field(client: Client) -> None:
    with pytest.raises(KleashError) as error:
        client.jobs.create({"config": {**SPEC["config"], "optimization": {"steps": 0}}})
    assert error.value.code == "validation_error"
    assert "/config/optimization/steps" in str(error.value)


def test_the_doctor_sees_what_is_down(url: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--url", url, "--data", str(tmp_path), "--json"])
    found = {line["name"]: line["ok"] for line in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 3
    assert [name for name, ok in found.items() if not ok and name != "disk"] == [
        "broker",
        "scorer",
        "workers",
    ]
