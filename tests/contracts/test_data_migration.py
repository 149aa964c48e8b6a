"""Migration 0060 finds the names of the metrics that jobs had before it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from jobs.metric_series import PointSeries, SeriesQuery
from jobs.migrate import MIGRATIONS, upgrade
from jobs.sql_base import make_engine
from jobs.sql_store import SqlStore
from tests.contracts.store_jobs import SPEC

OLD_JOB = """INSERT INTO jobs (id, owner, spec, resolved, max_attempts, priority, status, desired, epoch, attempt,
    crash_count, saved_step, dispatched_epoch, dispatches, step, latest, version, event_seq, created_at, queued_at,
    updated_at) VALUES ('job_1', 'me', :spec, '{}', 3, 7, 'cancelled', 'run', 1, 1, 0, 0, 0, 0, 2, '{}', 1, 1, 5.0,
    5.0, 5.0)"""
OLD_STEP = """INSERT INTO job_metrics (job_id, step, metrics, timings, attempt, created_at)
    VALUES ('job_1', :step, :metrics, '{"rollout_s": 1.5}', 1, 5.0)"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_old_metrics_are_series(
    kind: str, new_postgres_database: Callable[[str], str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/k.db" if kind == "sqlite" else new_postgres_database("old")
    engine, config = make_engine(url), Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.execute(text(OLD_JOB), {"spec": SPEC.model_dump_json()})
        for step, metrics in ((1, '{"a/b": 1.0}'), (2, '{"a/b": 2.0, "c": 3.0}')):
            connection.execute(text(OLD_STEP), {"step": step, "metrics": metrics})
    engine.dispose()
    upgrade(url)
    store = SqlStore(url)
    assert store.metric_series("job_1", SeriesQuery()).series == [
        PointSeries("a/b", 2, {1: 1.0, 2: 2.0}),
        PointSeries("c", 1, {2: 3.0}),
        PointSeries("timings/rollout_s", 2, {1: 1.5, 2: 1.5}),
    ]
    store.close()
