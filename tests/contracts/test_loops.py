"""Dispatcher and reaper on both databases: a database that is away, or not migrated yet, ends neither."""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import text

from jobs.dispatcher import Dispatcher
from jobs.errors import StoreUnavailable
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Status

SETTINGS = Settings(dispatch_every_s=0.05, reap_every_s=0.05)
SPEC = PPOSpec.model_validate_json(
    """{"config": {"model": {"name": "m"}, "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"}, "optimization": {"steps": 1}}}"""
)


class RecordingBroker:
    """Remembers what was published; `arrived` is released each time."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.arrived = threading.Semaphore(0)

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int) -> None:
        self.sent.append(job_id)
        self.arrived.release()

    def ready(self) -> bool:
        return True


@contextmanager
def running(loop: Dispatcher | Reaper) -> Iterator[None]:
    """The loop in a thread, which must still be there at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    try:
        yield
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(timeout=30)
    assert not thread.is_alive()


@contextmanager
def without_tables(store: SqlStore) -> Iterator[None]:
    rename = "ALTER TABLE {} RENAME TO {}"
    with store.engine.begin() as connection:
        connection.execute(text(rename.format("jobs", "hidden")))
    try:
        yield
    finally:
        with store.engine.begin() as connection:
            connection.execute(text(rename.format("hidden", "jobs")))


def test_loops_outlive_a_database_without_tables(store: SqlStore, caplog: pytest.LogCaptureFixture) -> None:
    broker = RecordingBroker()
    loops = [Dispatcher(store, broker, SETTINGS), Reaper(store, SETTINGS)]
    warned = {loop.__module__: threading.Event() for loop in loops}

    def notice(record: logging.LogRecord) -> bool:
        if record.name in warned:
            warned[record.name].set()
        return True

    caplog.handler.addFilter(notice)
    store.create_job("job_1", "me", SPEC, {})
    assert store.claim("job_1", 1, worker="w", lease_s=-1) is not None
    with ExitStack() as around:
        with without_tables(store):
            for loop in loops:
                with pytest.raises(StoreUnavailable):
                    loop.run_once()
                around.enter_context(running(loop))
            assert all(event.wait(60) for event in warned.values())
        assert broker.arrived.acquire(timeout=60)  # reaped, queued again, and sent
    assert broker.sent == ["job_1"]
    assert store.get_job("job_1").status is Status.QUEUED
