"""A real SQLite database, and supervisors on it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.worker.supervised import CHILD, LONG_S, ROOT, spec
from worker.supervisor import Supervisor


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    monkeypatch.setenv("KLEASH_DATABASE_URL", url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return url


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    store = SqlStore(url)
    yield store
    store.close()


@pytest.fixture
def start(tmp_path: Path, store: SqlStore) -> Callable[..., Callable[[], Status | None]]:
    """`start(mode, **settings)` gives a supervisor's run of a new job, not yet begun."""

    def prepare(
        mode: str,
        *,
        limits: dict[str, float] | None = None,
        through: SqlStore | None = None,
        **settings: float,
    ) -> Callable[[], Status | None]:
        store.create_job("job_1", "me", spec(**limits or {}), {})
        quick = {"heartbeat_s": 0.05, "lease_s": 60.0, "stop_grace_s": LONG_S} | settings
        supervisor = Supervisor(
            through or store,
            Settings(data=tmp_path, **quick),  # type: ignore[arg-type]
            worker="w",
            command=[sys.executable, str(CHILD), mode, str(tmp_path)],
        )
        return lambda: supervisor.run("job_1", store.get_job("job_1").epoch)

    return prepare
