"""A data folder for `kleash up` with any number of jobs, filled through the store's own tables."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select

from benchmarks.http.polls import TRAINING
from jobs.keys import FIRST_OWNER
from jobs.migrate import upgrade
from jobs.schema import job_events, job_metrics, jobs
from jobs.schema_data import job_metric_keys
from jobs.schema_jobs import job_labels, label_of
from jobs.spec import PPOSpec, ScoreSpec
from jobs.sql_store import SqlStore
from jobs.states import Status

ROWS = 2000  # inserted at once
KEYS = [f"group{i % 7}/metric_{i:02d}" for i in range(60)]
EVENTS = ("job.created", "job.started", "job.ended")
BEGAN, APART_S = 1_790_000_000.0, 60.0  # seconds since the epoch, of the first job; between two
RARE = {777: Status.PAUSED, 12: Status.FAILED}  # by the remainder of a job's number by 1000 and by 20
TEAMS = 5


def job_id(number: int) -> str:
    """The id of the job that was made as number so and so."""
    return f"job_{number:032x}"


def fill(folder: Path, jobs_number: int, runs: Sequence[int]) -> None:
    """A data folder whose database has so many jobs; the first ones are runs with so many steps × 60 keys.

    One owner in ten is another one. One job in 1000 is paused, one in 20 has failed, the others have succeeded.
    """
    url = f"sqlite:///{folder}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    templates = _templates(store)
    numbers = range(1, jobs_number + 1)
    with store.writing() as connection:
        _insert(connection, jobs, (_job(templates, number, runs) for number in numbers))
        _insert(connection, job_events, (event for number in numbers for event in _events(number)))
        _insert(connection, job_labels, (_label(number) for number in numbers))
        for number, steps in enumerate(runs, start=1):
            _insert(connection, job_metrics, (_step(number, step) for step in range(1, steps + 1)))
            keys = ({"job_id": job_id(number), "key": key} for key in KEYS)
            _insert(connection, job_metric_keys, keys)
    store.close()


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    while some := [row for _, row in zip(range(ROWS), rows, strict=False)]:
        connection.execute(insert(table), some)


def _templates(store: SqlStore) -> list[dict[str, Any]]:
    """Rows as the store writes them, of a training run and of a score job."""
    specs = [
        PPOSpec.model_validate(TRAINING),
        ScoreSpec.model_validate({"type": "score", "config": {"items": ["A quiet film."]}}),
    ]
    rows = []
    for spec in specs:
        store.create_job(job_id(0), FIRST_OWNER, spec, {})
        with store.writing() as connection:
            rows.append(dict(connection.execute(select(jobs)).mappings().one()))
            connection.execute(delete(jobs))
    return rows


def _owner(number: int) -> str:
    return "another" if number % 10 == 3 else FIRST_OWNER


def _job(templates: Sequence[dict[str, Any]], number: int, runs: Sequence[int]) -> dict[str, Any]:
    status = RARE.get(number % 1000) or RARE.get(number % 20) or Status.SUCCEEDED
    at = BEGAN + APART_S * number
    steps = runs[number - 1] if number <= len(runs) else 1
    return templates[number % 10 == 5] | {
        "id": job_id(number),
        "owner": _owner(number),
        "name": f"run {number}",
        "metadata": {"team": f"team-{number % TEAMS}"},
        "status": status,
        "attempt": 1,
        "epoch": 1,
        "dispatched_epoch": 1,
        "dispatches": 1,
        "step": steps,
        "version": 5,
        "event_seq": len(EVENTS),
        "created_at": at,
        "queued_at": at,
        "started_at": at + 1,
        "finished_at": None if status is Status.PAUSED else at + 50,
        "updated_at": at + 50,
    }


def _events(number: int) -> Iterator[dict[str, Any]]:
    for seq, kind in enumerate(EVENTS, start=1):
        yield {
            "job_id": job_id(number),
            "seq": seq,
            "type": kind,
            "level": "info",
            "message": "It was so.",
            "data": {},
            "attempt": 1,
            "created_at": BEGAN + APART_S * number + seq,
        }


def _label(number: int) -> dict[str, Any]:
    label = label_of("team", f"team-{number % TEAMS}")
    return {"owner": _owner(number), "label": label, "job_id": job_id(number)}


def _step(number: int, step: int) -> dict[str, Any]:
    """Values jump about, so that no two buckets are alike."""
    values = {key: (step * 7919 + i * 104_729) % 99_991 / 99_991 for i, key in enumerate(KEYS)}
    return {
        "job_id": job_id(number),
        "step": step,
        "metrics": values,
        "timings": {"rollout_s": 1.5},
        "attempt": 1,
        "created_at": BEGAN + APART_S * number + step,
    }
