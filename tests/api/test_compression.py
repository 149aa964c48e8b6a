"""gzip: large JSON documents for who takes it, the same document as without, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.compression import takes_gzip
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api.conftest import BASE_URL, HERE

PLAIN, GZIP = {"Accept-Encoding": "identity"}, {"Accept-Encoding": "br, gzip"}
SCORES = {"input": ["text"] * 40}


def whole(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in ("id", "created_at")}


def test_large_documents_are_compressed_and_nothing_else_is(
    new_app: Callable[[Settings], FastAPI],
    settings: Settings,
    store: SqlStore,
    answering: None,
    spec: dict[str, Any],
) -> None:
    app = new_app(settings.model_copy(update={"gzip": True}))
    with TestClient(app, base_url=BASE_URL, client=HERE) as client:
        plain = client.post("/v1/scores", json=SCORES, headers=PLAIN)
        small = client.post("/v1/scores", json=SCORES, headers=GZIP)
        assert whole(small.json()) == whole(plain.json()), "the client undoes it"
        assert small.headers["Content-Encoding"] == "gzip"
        assert int(small.headers["Content-Length"]) < len(plain.content) / 3
        assert "Server-Timing" in small.headers
        assert "Content-Encoding" not in plain.headers
        assert small.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"

        lines = client.post("/v1/scores/stream", json=SCORES, headers=GZIP)
        tiny = client.post("/v1/scores", json={"input": []}, headers=GZIP)
        assert not {"Content-Encoding", "Vary"} & ({*lines.headers} | {*tiny.headers})

        job = client.post("/v1/jobs", json=spec).json()["id"]
        assert store.claim(job, 1, worker="w", lease_s=60) is not None
        for step in range(1, 5):
            metrics = {f"kl/{i}": i / 7 for i in range(20)}
            store.record_step(job, 1, step=step, metrics=metrics, timings={})
        url = f"/v1/jobs/{job}/metrics"
        packed, strong = client.get(url, headers=GZIP), client.get(url, headers=PLAIN)
        assert packed.json() == strong.json()
        assert packed.headers["ETag"] == f"W/{strong.headers['ETag']}"
        again = client.get(url, headers={**GZIP, "If-None-Match": packed.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        table = client.get(url, params={"format": "csv"}, headers=GZIP)
        assert "Content-Encoding" not in table.headers


def test_by_default_nothing_is(client: TestClient, answering: None) -> None:
    assert "Content-Encoding" not in client.post("/v1/scores", json=SCORES, headers=GZIP).headers


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.00", False),
        ("gzipped, *", False),
        ("", False),
    ],
)
def test_who_takes_it(header: str, *, taken: bool) -> None:
    assert takes_gzip(header) == taken
