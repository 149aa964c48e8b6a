"""An upload that ends before its time, by the client or by kill -9, leaves nothing for good."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api.test_server import serving

LINE = b'"' + b"a" * 98 + b'"\n'
PATIENCE_S = 60.0


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def half_an_upload(url: str, folder: Path) -> socket.socket:
    """A connection that has sent three of ten megabytes, one of which at least is on the disk."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    request = (
        "POST /v1/files?name=n&purpose=items HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/jsonl"
    )
    connection.sendall(f"{request}\r\nContent-Length: 10000000\r\n\r\n".encode() + LINE * 30_000)
    wait_until(lambda: any(path.stat().st_size > 1_000_000 for path in folder.glob(".file_*")))
    return connection


def test_of_half_an_upload_nothing_stays(
    settings: Settings, store: SqlStore, tmp_path: Path, new_app: Callable[[Settings], FastAPI]
) -> None:
    folder = tmp_path / "data" / "uploads"
    with serving(settings, tmp_path) as (url, _, process):
        with half_an_upload(url, folder):
            pass
        wait_until(lambda: not list(folder.iterdir()))  # the client has gone
        with half_an_upload(url, folder):
            process.kill()
            process.wait()
    assert [path.name[:6] for path in folder.iterdir()] == [".file_"]
    with TestClient(new_app(settings)):
        wait_until(lambda: not list(folder.iterdir()))
    assert store.list_files("local") == []
