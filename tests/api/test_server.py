"""A real server process: what only shows over sockets."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.settings import Settings
from jobs.sql_store import SqlStore

ROOT = Path(__file__).resolve().parents[2]
MAX_BODY = 20_000


@pytest.fixture
def server(settings: Settings, store: SqlStore, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Its URL and its log."""
    with serving(settings, tmp_path) as (url, log, _):
        yield url, log


@contextmanager
def serving(
    settings: Settings, tmp_path: Path, *, command: Sequence[str] = ("-m", "api")
) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """`python -m api` without broker and scorer; a test that ends it itself also waits for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "KLEASH_DATABASE_URL": settings.database_url.get_secret_value(),
        "KLEASH_BROKER_URL": f"redis+socket://{tmp_path}/nowhere.sock",
        "KLEASH_SCORER_URL": f"unix:{tmp_path}/nowhere.sock",
        "KLEASH_DATA": str(tmp_path / "data"),
        "KLEASH_MODELS_FILE": str(settings.models_file),
        "KLEASH_PORT": str(port),
        "KLEASH_UNSAFE_NO_AUTH": "true",
        "KLEASH_MAX_BODY_BYTES": str(MAX_BODY),
    }
    log = tmp_path / "api.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(url, process)
        yield url, log, process
    finally:
        if process.returncode is None:
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM  # uvicorn ends in order, then by the signal itself


def test_a_connection_that_was_accepted_is_answered_through_a_shutdown(
    settings: Settings, store: SqlStore, tmp_path: Path
) -> None:
    """uvicorn alone ends it without a word: the request comes after the signal."""
    patiently = "import api.__main__ as api; api.SETTLE_S = 600; api.main()"
    with serving(settings, tmp_path, command=("-c", patiently)) as (url, _, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            httpx2.get(f"{url}/health")  # a later connection has been served, so this one has been accepted
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


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx2.get(f"{url}/health")
            return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


def test_over_sockets(server: tuple[str, Path], spec: dict[str, Any]) -> None:
    url, log = server
    canary = "canary-7f3a"
    with httpx2.Client(base_url=url, trust_env=False) as client:
        ready = client.get("/ready")
        assert ready.status_code == 503
        assert ready.json()["checks"] == {"database": "ok", "broker": "down", "scorer": "down"}

        # Without a broker jobs are taken; without a scorer scores are not, and both say so.
        created = client.post("/v1/jobs", json=spec | {"name": canary}, headers={"Idempotency-Key": canary})
        assert created.status_code == 201
        score = client.post("/v1/scores", json={"input": canary})
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
    assert posted[0]["request_id"] == created.headers["x-request-id"]
    assert canary not in log.read_text()
