"""A store that is away for a while: the run waits, then goes on; for too long: it gives up."""

import sqlite3
from pathlib import Path

import pytest

from jobs.errors import LeaseLost, StoreUnavailable
from jobs.migrate import upgrade
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.faults.bench import spec
from worker.patience import LONGEST_PAUSE_S, patient


class Clock:
    """Time passes only in `wait`; at `back_at` the database is let go."""

    def __init__(self, blocker: sqlite3.Connection, back_at: float) -> None:
        self.now, self.pauses = 0.0, [0.0]
        self._blocker, self._back_at = blocker, back_at

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        if self.now >= self._back_at and self._blocker.in_transaction:
            self._blocker.rollback()


@pytest.mark.parametrize("away_s", [5.0, 23.0, 60.0])
def test_a_database_that_is_away_costs_time_and_no_attempt(tmp_path: Path, away_s: float) -> None:
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    real = SqlStore(url, lock_wait_s=0.01)
    real.create_job("job_1", "me", spec({}), {})
    assert real.claim("job_1", 1, worker="w", lease_s=600)
    blocker = sqlite3.connect(tmp_path / "kleash.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    clock = Clock(blocker, away_s)
    store = patient(real, clock, for_s=24.0)
    if away_s > 24.0:
        with pytest.raises(StoreUnavailable):
            store.set_phase("job_1", 1, "training")
        assert clock.now <= 24.0
        blocker.rollback()
    else:
        store.set_phase("job_1", 1, "training")
        assert real.get_job("job_1").phase == "training"
        assert away_s <= clock.now <= away_s + LONGEST_PAUSE_S
        assert clock.pauses == sorted(clock.pauses)
    blocker.close()
    assert real.get_job("job_1").status is Status.RUNNING
    real.close()


def test_a_lost_lease_is_not_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    real = SqlStore(url)
    real.create_job("job_1", "me", spec({}), {})
    store = patient(real, Clock(sqlite3.connect(":memory:"), 0.0), for_s=24.0)
    with pytest.raises(LeaseLost):
        store.set_phase("job_1", 1, "training")
    real.close()
