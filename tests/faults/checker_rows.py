"""The checker's view of the database: every row, by plain SQL of its own."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

LONGEST_TRANSACTION_S = 5

Row = dict[str, Any]


@dataclass
class JobRows:
    """One job with all that belongs to it, in order."""

    row: Row
    events: list[Row] = field(default_factory=list)  # by seq
    metrics: list[Row] = field(default_factory=list)  # by step
    checkpoints: list[Row] = field(default_factory=list)
    shards: list[Row] = field(default_factory=list)

    @property
    def id(self) -> str:
        job_id: str = self.row["id"]
        return job_id

    @property
    def spec(self) -> Row:
        spec: Row = self.row["spec"]
        return spec

    @property
    def steps(self) -> int:
        """How many steps the client asked for; of a score job, how many shards its items fill."""
        if self.trains:
            return int(self.spec["config"]["optimization"]["steps"])
        every = self.spec["config"]["checkpoint"]["every_items"]
        return -(-int(self.row["latest"].get("items_total", 0)) // every)

    @property
    def trains(self) -> bool:
        """False for a score job."""
        return self.spec["type"] == "ppo"

    @property
    def first_step(self) -> int:
        """The step of the checkpoint that the client had it start from, else 0."""
        source = self.row["resolved"].get("resume_from") or {}
        return int(source.get("step", 0))

    @property
    def work(self) -> str:
        """Equal for jobs that must end with equal weights."""
        return json.dumps([self.spec["config"], self.row["resolved"]], sort_keys=True)


@dataclass
class Database:
    """All of it."""

    jobs: dict[str, JobRows]
    keys: list[Row]
    open_transactions: list[str]
    deleted: frozenset[str] = frozenset()  # folders of jobs and checkpoints


def read_database(store_url: str) -> Database:
    """Everything, in one snapshot."""
    engine = create_engine(_with_driver(store_url), isolation_level=_isolation(store_url))
    try:
        with engine.connect() as connection:
            jobs = {row["id"]: JobRows(row) for row in _rows(connection, "jobs", "id", JOB_JSON)}
            _fill(connection, jobs)
            keys = _rows(connection, "idempotency_keys", "owner, operation, key", ())
            deleted = {row["path"] for row in _rows(connection, "deleted_folders", "path", ())}
            connection.rollback()
        keys = [row for row in keys if row["operation"] == "jobs_create"]
        return Database(jobs, keys, _open_transactions(store_url), frozenset(deleted))
    finally:
        engine.dispose()


JOB_JSON = ("spec", "resolved", "latest", "result", "error")


def _fill(connection: Connection, jobs: dict[str, JobRows]) -> None:
    orphans: dict[str, JobRows] = defaultdict(lambda: JobRows({}))
    for row in _rows(connection, "job_events", "job_id, seq", ("data",)):
        (jobs.get(row["job_id"]) or orphans[row["job_id"]]).events.append(row)
    for row in _rows(connection, "job_metrics", "job_id, step", ("metrics",)):
        (jobs.get(row["job_id"]) or orphans[row["job_id"]]).metrics.append(row)
    for row in _rows(connection, "job_checkpoints", "job_id, step, name", ()):
        (jobs.get(row["job_id"]) or orphans[row["job_id"]]).checkpoints.append(row)
    for row in _rows(connection, "job_shards", 'job_id, "index"', ()):
        (jobs.get(row["job_id"]) or orphans[row["job_id"]]).shards.append(row)
    if orphans:
        raise AssertionError(f"rows of jobs that do not exist: {sorted(orphans)}")


def _rows(connection: Connection, table: str, order: str, decoded: tuple[str, ...]) -> list[Row]:
    rows = [
        dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}")).mappings()
    ]
    for row in rows:
        for name in decoded:
            if isinstance(row[name], str):
                row[name] = json.loads(row[name])
    return rows


def _with_driver(store_url: str) -> URL:
    url = make_url(store_url)
    return url.set(drivername="postgresql+psycopg") if url.get_backend_name().startswith("postgres") else url


def _isolation(store_url: str) -> str:
    return "SERIALIZABLE" if store_url.startswith("sqlite") else "REPEATABLE READ"


def _open_transactions(store_url: str) -> list[str]:
    """Transactions that stay open: they would block writers, or the cleaning up of old rows, for ever."""
    if not store_url.startswith("sqlite"):
        return _open_in_postgresql(store_url)
    engine = create_engine(_with_driver(store_url), connect_args={"timeout": LONGEST_TRANSACTION_S})
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            connection.exec_driver_sql("ROLLBACK")
    except OperationalError as error:
        return [f"a transaction holds the write lock: {error.orig}"]
    finally:
        engine.dispose()
    return []


def _open_in_postgresql(store_url: str) -> list[str]:
    query = text(
        "SELECT pid, application_name, now() - xact_start AS age FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend' "
        f"AND xact_start < clock_timestamp() - interval '{LONGEST_TRANSACTION_S} seconds'"
    )
    engine = create_engine(_with_driver(store_url))
    try:
        with engine.connect() as connection:
            return [
                f"transaction of backend {row.pid} open for {row.age}" for row in connection.execute(query)
            ]
    finally:
        engine.dispose()
