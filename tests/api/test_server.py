"""A real server process: what only shows over sockets."""

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api.serving import serving


@pytest.fixture
def server(settings: Settings, store: SqlStore, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Its URL and its log."""
    with serving(settings, tmp_path) as (url, log, _):
        yield url, log


def test_a_connection_that_was_accepted_is_answered_through_a_shutdown(
    settings: Settings, store: SqlStore, tmp_path: Path
) -> None:
    """uvicorn alone ends it without a word: the request comes after the signal."""
    patiently = "import api.__main__ as api; api.SETTLE_S = 600; api.main()"
    with serving(settings, tmp_path, command=("-c", patiently)) as (url, _, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            httpx2.get(
                f"{url}/health", timeout=60
            )  # a later connection has been served, so this one has been accepted
            process.send_signal(signal.SIGTERM)
            refused = False
            while not refused:  # until the shutdown has begun
                try:
                    socket.create_connection((host, int(port)), timeout=30).close()
                except OSError:
                    refused = True
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        process.kill()
        process.wait()


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_over_sockets(server: tuple[str, Path], spec: dict[str, Any]) -> None:
    url, log = server
    canary = "canary-7f3a"
    with httpx2.Client(base_url=url, trust_env=False, timeout=60) as client:
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["checks"] == {"database": "ok", "broker": "down", "scorer": "down"}

        # Without a broker jobs are taken; without a scorer scores are not, and both say so.
        traced = {"Idempotency-Key": canary, "Traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        created = client.post("/v1/jobs", json=spec | {"name": canary}, headers=traced)
        assert created.status_code == 201
        assert created.json()["trace_id"] == TRACE
        again = client.post("/v1/jobs", json=spec | {"name": canary}, headers={"Idempotency-Key": canary})
        assert again.json()["trace_id"] == TRACE  # of the request that made it
        score = client.post("/v1/scores", json={"input": canary}, headers={"Traceparent": canary})
        assert (score.status_code, score.json()["code"]) == (503, "scorer_unavailable")
        assert score.headers["retry-after"]

        for content in (b"x" * 10_000_000, (b"x" * 1000 for _ in range(100))):
            headers = {"Content-Type": "application/json"}
            large = client.post("/v1/jobs", content=content, headers=headers)
            assert (large.status_code, large.json()["code"]) == (413, "request_too_large")
        assert client.get("/v1/jobs").json()["data"][0]["id"] == created.json()["id"]

    lines = [json.loads(line) for line in log.read_text().splitlines()]  # every line is JSON
    posted = [line for line in lines if line.get("route") == "/v1/jobs" and line["method"] == "POST"]
    assert posted[0]["status"] == 201
    assert [line["trace_id"] for line in lines if "trace_id" in line] == [TRACE]
    assert posted[0]["trace_id"] == TRACE
    assert posted[0]["request_id"] == created.headers["x-request-id"]
    assert canary not in log.read_text()
