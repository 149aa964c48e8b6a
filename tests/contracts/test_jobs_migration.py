"""Migration 0040 gives old jobs the columns that their requests fill, and keeps what hangs on them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from jobs.errors import JobInUse
from jobs.migrate import MIGRATIONS, upgrade
from jobs.sql_base import make_engine
from jobs.sql_store import SqlStore
from jobs.states import Action
from jobs.store_jobs import JobFilter
from tests.contracts.store_jobs import SPEC

OLD_ROW = """INSERT INTO jobs (id, owner, spec, resolved, max_attempts, priority, status, desired, epoch, attempt,
    crash_count, saved_step, dispatched_epoch, dispatches, step, latest, version, event_seq, created_at, queued_at,
    finished_at, updated_at) VALUES (:id, 'me', :spec, :resolved, 3, 7, :status, 'run', 1, 0, 0, 0, 0, 0, 0, '{}',
    1, 1, 5.0, 5.0, NULL, 5.0)"""
OLD_EVENT = """INSERT INTO job_events (job_id, seq, type, level, message, data, attempt, created_at)
    VALUES (:id, 1, 'job.created', 'info', '"Queued."', '{}', 0, 5.0)"""

OLD_SAMPLE = """INSERT INTO job_samples (job_id, step, kind, "index", prompt, completion, data)
    VALUES (:id, 1, 'eval', :index, '""', '""', :data)"""


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_old_jobs_are_found_changed_and_protected(
    kind: str, new_postgres_database: Callable[[str], str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/k.db" if kind == "sqlite" else new_postgres_database("old")
    engine, config = make_engine(url), Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    start = {"job_id": "job_1", "name": "step-1", "sha256": "0", "path": "/p", "step": 1}
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for job_id, status, resolved in (
            ("job_1", "cancelled", {}),
            ("job_2", "queued", {"resume_from": start}),
        ):
            row = {
                "id": job_id,
                "spec": SPEC.model_dump_json(),
                "resolved": json.dumps(resolved),
                "status": status,
            }
            connection.execute(text(OLD_ROW), row)
            connection.execute(text(OLD_EVENT), {"id": job_id})
        for index, kl in enumerate([0.5, None, 0.1]):
            data = json.dumps({"kl": kl, "token_texts": ["\x00"]} if kl else {})
            connection.execute(text(OLD_SAMPLE), {"id": "job_1", "index": index, "data": data})
    engine.dispose()
    upgrade(url)

    store = SqlStore(url)
    where = JobFilter(metadata={"team": "rl"}, type="ppo")
    assert [job.id for job in store.list_jobs(owner="me", where=where)] == ["job_2", "job_1"]
    old = store.get_job("job_1")
    assert (old.name, old.metadata, old.priority, old.spec) == ("n", {"team": "rl"}, 7, SPEC)
    assert len(store.list_events("job_1")) == 1
    assert [sample.index for sample in store.list_samples("job_1", order_by="kl")] == [2, 0, 1]
    with pytest.raises(JobInUse):
        store.delete_job("job_1")
    store.request("job_2", Action.CANCEL)
    store.delete_job("job_1")
    store.close()
