"""The composition root: its loops, and what it opens and closes itself."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api.app import create_app
from api.scorer import HttpScorer
from jobs.settings import Settings
from jobs.sql_store import SqlStore

CANARY = "canary-7f3a"


@pytest.fixture
def told_to_end() -> Iterator[threading.Event]:
    """Set when this process is sent SIGTERM, which does nothing else meanwhile."""
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    yield told
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("loop", "method"), [("Dispatcher", "undispatched"), ("Reaper", "reap")])
def test_a_loop_that_fails_unexpectedly_ends_the_process_and_says_where(
    new_app: Callable[[Settings], FastAPI],
    settings: Settings,
    store: SqlStore,
    monkeypatch: pytest.MonkeyPatch,
    told_to_end: threading.Event,
    loop: str,
    method: str,
) -> None:
    def broken(**_: object) -> Any:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(store, method, broken)
    with capture_logs() as logs, TestClient(new_app(settings)):
        assert told_to_end.wait(60)
    (failed,) = [line for line in logs if line["event"] == "loop_failed"]
    assert (failed["loop"], failed["error"]) == (loop, "RuntimeError")
    assert failed["at"][-1].endswith(" broken")
    assert CANARY not in str(failed)


def test_what_the_application_opened_is_closed_when_it_ends_and_nothing_else(
    settings: Settings, store: SqlStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    closed: list[object] = []

    async def aclose(part: object) -> None:
        closed.append(part)

    monkeypatch.setattr(SqlStore, "close", lambda part: closed.append(part))
    monkeypatch.setattr(HttpScorer, "aclose", aclose)
    broker_url = SecretStr(f"redis+socket://{tmp_path}/nowhere.sock")
    app = create_app(settings.model_copy(update={"broker_url": broker_url}))
    with TestClient(app):
        assert closed == []
    parts = app.state.parts
    assert sorted(closed, key=id) == sorted([parts.store, parts.scorer], key=id)
    closed.clear()
    with TestClient(create_app(settings, store=store, scorer=parts.scorer)):
        pass
    assert closed == []
