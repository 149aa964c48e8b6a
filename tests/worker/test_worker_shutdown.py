"""A worker process that ends, in order or by kill -9, while its child runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.worker.supervised import CHILD, assert_nothing_lives, set_row, spec, wait_until

WORKER = """
import signal, sys
from pathlib import Path
from jobs.settings import Settings
from jobs.sql_store import open_store
from worker.supervisor import Supervisor

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as Celery's pool process does
settings = Settings()
Supervisor(open_store(settings), settings, worker="w", command=sys.argv[1:]).run("job_1", 1)
"""


@pytest.fixture
def worker(tmp_path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`worker(mode)` is a process with a supervisor whose child has started."""
    store.create_job("job_1", "me", spec(), {})
    for name, value in {"DATA": str(tmp_path), "HEARTBEAT_S": "0.05", "STOP_GRACE_S": "600"}.items():
        monkeypatch.setenv(f"KLEASH_{name}", value)

    def begin(mode: str) -> Any:
        child = [sys.executable, str(CHILD), mode, str(tmp_path)]
        process = subprocess.Popen([sys.executable, "-c", WORKER, *child])
        wait_until(lambda: (tmp_path / "starts").exists() or process.poll() is not None)
        return process

    return begin


def test_a_worker_that_shuts_down_hands_its_job_back(
    tmp_path: Path, store: SqlStore, worker: Callable[[str], Any]
) -> None:
    process = worker("obey")
    process.terminate()
    assert process.wait() == 0
    job = store.get_job("job_1")
    assert (job.status, job.crash_count, job.epoch) == (Status.QUEUED, 0, 2)
    assert store.list_events("job_1")[-1].data == {"reason": "its worker is shutting down", "crashed": False}
    assert_nothing_lives(tmp_path)


def test_kill_9_of_the_worker_ends_the_child_and_the_reaper_requeues(
    tmp_path: Path, store: SqlStore, worker: Callable[[str], Any]
) -> None:
    process = worker("orphan")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_nothing_lives(tmp_path)
    set_row(store, lease_until=0.0)
    assert [item.status for item in store.reap()] == [Status.QUEUED]
