"""A worker shows that it is there; a database that is away costs a line in the log."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.migrate import upgrade
from jobs.sql_store import SqlStore
from worker.presence import Presence, card, worker_id


def wait_until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_comes_when_the_database_does_and_goes_with_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path}/kleash.db"
    store = SqlStore(url)
    tries: list[SqlStore] = []

    def opened() -> SqlStore:
        tries.append(store)
        return store

    presence = Presence(card("h:1", ["gpu.any", "cpu"]), opened, every_s=0.01)
    with caplog.at_level(logging.WARNING):
        presence.start()
        wait_until(lambda: len(tries) > 2)
        upgrade(url)
        wait_until(store.list_workers)
    (shown,) = store.list_workers()
    assert (shown.id, shown.queues, shown.device in ("cpu", "cuda")) == ("h:1", ("cpu", "gpu.any"), True)
    assert len(caplog.records) == 1, "one line for one outage"
    first = shown.heartbeat_at
    wait_until(lambda: store.list_workers()[0].heartbeat_at > first)
    presence.stop()
    wait_until(lambda: not store.list_workers())  # a busy machine's last word may come after `stop`
    store.close()


def test_its_name_is_that_of_the_process() -> None:
    assert worker_id().rpartition(":")[2] == str(os.getpid())
