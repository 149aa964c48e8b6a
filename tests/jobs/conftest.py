"""A migrated SQLite store."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.migrate import upgrade
from jobs.sql_store import SqlStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    yield store
    store.close()
