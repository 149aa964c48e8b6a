"""What tests of the supervisor share: a job whose child is standin_child.py, and ways to wait for it."""

import fcntl
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlalchemy import update

from jobs.errors import StoreUnavailable
from jobs.schema import jobs
from jobs.spec import Job, PPOSpec
from jobs.sql_store import SqlStore

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("standin_child.py")
LONG_S = 600.0


class Unrenewable(SqlStore):
    """A database that refuses renewals."""

    def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> Job:
        raise StoreUnavailable("away")


def spec(**limits: float) -> PPOSpec:
    return PPOSpec.model_validate_json(
        json.dumps(
            {
                "limits": {"max_attempts": 2, **limits},
                "config": {
                    "model": {"name": "m"},
                    "data": {"prompts": ["a"]},
                    "reward": {"kind": "sentiment"},
                    "optimization": {"steps": 1},
                },
            }
        )
    )


def wait_until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "waited for two minutes"
        time.sleep(0.02)


def assert_nothing_lives(folder: Path) -> None:
    """Returns once every process that shared the child's lock has gone; else the test's timeout ends it."""
    with (folder / "alive").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def set_row(store: SqlStore, **values: Any) -> None:
    with store.writing() as connection:
        connection.execute(update(jobs).values(**values))


def run_and(run: Callable[[], Any], folder: Path, act: Callable[[], Any]) -> Any:
    """Run a supervisor and, once its child has started, `act`; returns what the supervisor returns."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        wait_until(lambda: (folder / "starts").exists() or future.done())
        act()
        return future.result()
