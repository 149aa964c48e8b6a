"""A job's metrics over HTTP: series, what came since, 304, and the files."""

import csv
import io
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.schemas_metrics import MetricsDocument
from jobs.sql_store import SqlStore
from tests.api.acting import claimed, create


@pytest.fixture
def job_id(client: TestClient, spec: dict[str, Any]) -> str:
    job_id: str = create(client, spec)["id"]
    return job_id


def write(store: SqlStore, job_id: str, attempt: int, steps: range) -> None:
    """kl/sequence is the step but 999.0 at step 13; reward/mean is there at even steps; a timing at all."""
    for step in steps:
        metrics = {"kl/sequence": 999.0 if step == 13 else float(step)}
        if step % 2 == 0:
            metrics["reward/mean"] = -step / 4
        store.record_step(job_id, attempt, step=step, metrics=metrics, timings={"rollout_s": 0.5})


def test_series_keep_their_spikes(client: TestClient, store: SqlStore, job_id: str) -> None:
    write(store, job_id, claimed(store, job_id).attempt, range(1, 31))
    url = f"/v1/jobs/{job_id}/metrics"
    document = client.get(url, params={"keys": "kl/*,reward/mean", "max_points": 8}).json()
    MetricsDocument.model_validate(document)
    assert (document["last_step"], document["next_after"], document["downsampled"]) == (30, "s30.a1", True)
    kl, reward = document["series"]
    # (8 − 2) // 2 = 3 buckets of ten steps: lowest and highest of each, which hold the first and the last step.
    assert (kl["key"], kl["unit"], kl["n_raw"]) == ("kl/sequence", "nats/sequence", 30)
    assert kl["step"] == [1, 10, 11, 13, 21, 30]
    assert kl["value"] == [1.0, 10.0, 11.0, 999.0, 21.0, 30.0]
    assert (reward["key"], reward["unit"], reward["n_raw"]) == ("reward/mean", None, 15)
    assert reward["step"] == [2, 10, 12, 20, 22, 30]
    whole = client.get(url).json()
    assert not whole["downsampled"]
    assert [one["key"] for one in whole["series"]] == ["kl/sequence", "reward/mean", "timings/rollout_s"]
    assert whole["series"][0]["step"] == list(range(1, 31))
    assert whole["series"][0]["time"] is None
    timed = client.get(url, params={"max_points": 8, "include": "time"}).json()
    rows = [json.loads(line) for line in client.get(url, params={"format": "jsonl"}).text.splitlines()]
    written_at = {row["step"]: row["created_at"] for row in rows}
    assert [one["time"] for one in timed["series"]] == [
        [written_at[step] for step in one["step"]] for one in timed["series"]
    ]
    last = client.get(url, params={"keys": "kl/sequence", "max_points": 5, "downsample": "last"}).json()
    assert last["series"][0]["step"] == [1, 10, 20, 30]


def test_a_client_asks_for_what_came_since_and_page_by_page(
    client: TestClient, store: SqlStore, job_id: str
) -> None:
    url = f"/v1/jobs/{job_id}/metrics"
    assert client.get(url).json()["next_after"] is None
    attempt = claimed(store, job_id).attempt
    write(store, job_id, attempt, range(1, 6))
    first = client.get(url, params={"keys": "kl/sequence"})
    assert client.get(url, headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    write(store, job_id, attempt, range(6, 8))
    assert client.get(url, headers={"If-None-Match": first.headers["etag"]}).status_code == 200
    since = {"keys": "kl/sequence", "after": first.json()["next_after"]}
    assert client.get(url, params=since).json()["series"][0]["step"] == [6, 7]
    store.hand_back(job_id, attempt, reason="lost", crashed=True)
    write(store, job_id, claimed(store, job_id).attempt, range(5, 7))
    again = client.get(url, params=since | {"after": "s7.a1"}).json()
    assert (again["rewritten_from"], again["last_step"], again["series"][0]["step"]) == (5, 6, [5, 6])

    pages, link = [], f"{url}?keys=kl/sequence&downsample=none&max_points=4"
    while link:
        page = client.get(link)
        pages.append(page.json()["series"][0]["step"])
        link = page.headers.get("link", "").partition(">")[0].lstrip("<")
    assert pages == [[1, 2, 3, 4], [5, 6]]


def test_rows_as_files(client: TestClient, store: SqlStore, job_id: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("api.services.metrics.ROWS_AT_ONCE", 2)
    write(store, job_id, claimed(store, job_id).attempt, range(1, 6))
    url = f"/v1/jobs/{job_id}/metrics"
    lines = client.get(url, params={"format": "jsonl", "from_step": 2})
    assert lines.headers["content-type"] == "application/jsonl"
    assert lines.headers["content-disposition"] == f'attachment; filename="{job_id}-metrics.jsonl"'
    rows = [json.loads(line) for line in lines.text.splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 5]
    assert rows[0]["metrics"] == {"kl/sequence": 2.0, "reward/mean": -0.5}
    assert rows[0]["timings"] == {"rollout_s": 0.5}
    table = client.get(url, params={"format": "csv", "keys": "reward/*,kl/sequence", "to_step": 3})
    header, *cells = csv.reader(io.StringIO(table.text))
    assert header == ["step", "attempt", "created_at", "kl/sequence", "reward/mean"]
    assert [row[:2] + row[3:] for row in cells] == [
        ["1", "1", "1.0", ""],
        ["2", "1", "2.0", "-0.5"],
        ["3", "1", "3.0", ""],
    ]
    assert client.get(url, params={"format": "csv", "keys": "none"}).text.startswith(
        "step,attempt,created_at\r\n1,1,"
    )


QUERIES = [
    ("after=7", 400),
    ("after=s1.a1%0A", 400),
    ("keys=", 422),
    ("keys=a,,b", 422),
    ("keys=a;b", 422),
    ("keys=" + "*a" * 51, 422),
    ("downsample=mean", 422),
    ("from_step=-1", 422),
    ("max_points=-5", 200),
    ("max_points=9223372036854775807", 200),
    ("max_points=9223372036854775808", 422),
    ("keys=" + "*a" * 50, 200),
]


def test_what_is_no_query_is_refused(client: TestClient, job_id: str) -> None:
    for query, status in QUERIES:
        assert client.get(f"/v1/jobs/{job_id}/metrics?{query}").status_code == status, query
