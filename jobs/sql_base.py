"""The ground SqlStore stands on: engines, transactions, one clock, one compare-and-set, numbered events."""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import orjson
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Select,
    create_engine,
    event,
    literal,
    make_url,
    select,
    update,
)
from sqlalchemy import exc as sql_errors
from sqlalchemy.dialects import postgresql, sqlite

from jobs.errors import JobNotFound, LeaseLost, StoreUnavailable
from jobs.event_order import insert_in_order
from jobs.faults import point
from jobs.outbox import enqueue_events
from jobs.schema import EpochNow, jobs
from jobs.spec import NewEvent
from jobs.states import Status

READ_ONLY = "kleash_read_only"
CHANGED = "kleash_changed"  # in a connection's info: ids of the jobs that the transaction has changed
EVENTS = "kleash_events"  # there too: the events to insert at its end
LOCK_WAIT_S = 5.0
NUL = "\x00"  # no id holds one, and PostgreSQL refuses to compare with it
NOT_MIGRATED = ("42P01", "42703")  # PostgreSQL's undefined_table and undefined_column


def database_url(url: str) -> URL:
    """The URL with its driver: `postgresql://` and `postgres://` mean psycopg 3."""
    parsed = make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def make_engine(url: str, *, lock_wait_s: float = LOCK_WAIT_S) -> Engine:
    """An engine whose transactions never wait longer than `lock_wait_s` for a lock.

    SQLite: WAL, foreign keys on, BEGIN IMMEDIATE (a deferred BEGIN that reads and then writes fails at once
    when another process writes), plain BEGIN under the execution option READ_ONLY.
    """
    parsed = database_url(url)
    options: dict[str, Any] = {
        "json_serializer": lambda value: orjson.dumps(value).decode(),  # NaN in a free-form value → null
        "json_deserializer": orjson.loads,
    }
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(
            parsed, connect_args={"timeout": lock_wait_s}, pool_size=20, pool_timeout=lock_wait_s, **options
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    lock_ms = int(lock_wait_s * 1000)
    return create_engine(
        parsed,
        connect_args={
            "connect_timeout": 5,
            "tcp_user_timeout": 10_000,
            "options": f"-c lock_timeout={lock_ms} -c idle_in_transaction_session_timeout=10000",
        },
        isolation_level="READ COMMITTED",
        pool_size=20,
        pool_timeout=lock_wait_s,
        pool_pre_ping=True,
        **options,
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver starts no transaction of its own
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def _outages() -> Iterator[None]:
    try:
        yield
    except (
        sql_errors.OperationalError,
        sql_errors.InterfaceError,
        sql_errors.InternalError,
        sql_errors.TimeoutError,
    ) as error:
        raise StoreUnavailable(str(error.__cause__ or error)) from error
    except sql_errors.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) not in NOT_MIGRATED:
            raise
        raise StoreUnavailable("the database does not have our tables (yet)") from error


class SqlBase:
    """Engines of one database. `now` replaces the database's clock in tests."""

    def __init__(
        self, url: str, *, now: Callable[[], float] | None = None, lock_wait_s: float = LOCK_WAIT_S
    ) -> None:
        self.engine = make_engine(url, lock_wait_s=lock_wait_s)
        self.lock_wait_s = lock_wait_s
        self._reader = self.engine.execution_options(**{READ_ONLY: True})
        self._bound_now = now
        self._listeners: list[Callable[[Collection[str]], None]] = []
        self.insert = sqlite.insert if self.engine.dialect.name == "sqlite" else postgresql.insert

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def now(self) -> ColumnElement[float]:
        """The one expression for now."""
        return EpochNow() if self._bound_now is None else literal(self._bound_now())

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads. Raises StoreUnavailable."""
        with _outages(), self._reader.begin() as connection:
            yield connection

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that may write; the method that opens it names its fault points.

        Raises StoreUnavailable.
        """
        return self._writing(sys._getframe(1).f_code.co_name.strip("_"))

    @contextmanager
    def _writing(self, method: str) -> Iterator[Connection]:
        changed: set[str] = set()
        events: list[dict[str, Any]] = []
        with _outages(), self.engine.begin() as connection:
            connection.info[CHANGED], connection.info[EVENTS] = changed, events
            yield connection
            if events:
                insert_in_order(connection, self.insert, events, self.now())
            point(f"commit.{method}.before")
        point(f"commit.{method}.after")
        if changed:
            for listener in self._listeners:
                listener(changed)

    def listen(self, changed: Callable[[Collection[str]], None]) -> None:
        """See jobs.store_live.LiveStore."""
        self._listeners.append(changed)

    def locked(self, connection: Connection, job_id: str) -> Any:
        """The job's row, which nobody else changes before the transaction ends; None if there is none."""
        return connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()

    def locked_for(self, connection: Connection, job_id: str, owner: str | None) -> Any:
        """As `locked`, of a job that this client may see. Raises JobNotFound."""
        one_row(connection, job_id, owner, select(jobs.c.id))
        row = self.locked(connection, job_id)
        if row is None:  # deleted in between
            raise JobNotFound(job_id)
        return row

    def change(
        self,
        connection: Connection,
        job_id: str,
        condition: ColumnElement[bool],
        values: dict[str, Any],
        events: Sequence[NewEvent] = (),
    ) -> bool:
        """Compare and set: if `condition` holds, set `values`, a new version, and append `events`."""
        done = connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id, condition)
            .values(
                **values,
                version=jobs.c.version + 1,
                event_seq=jobs.c.event_seq + len(events),
                updated_at=self.now(),
            )
        )
        if done.rowcount == 0:
            return False
        connection.info[CHANGED].add(job_id)
        if events:
            last = connection.execute(
                select(jobs.c.event_seq, jobs.c.attempt, jobs.c.owner).where(jobs.c.id == job_id)
            ).one()
            after = last.event_seq - len(events)
            self.write_events(connection, job_id, last.owner, last.attempt, after, events)
        return True

    def change_run(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        values: dict[str, Any],
        events: Sequence[NewEvent] = (),
    ) -> None:
        """`change` behind the fence. Raises LeaseLost unless `attempt` owns the running job."""
        fence = (jobs.c.attempt == attempt) & (jobs.c.status == Status.RUNNING)
        if not self.change(connection, job_id, fence, values, events):
            raise LeaseLost(f"{job_id}: attempt {attempt} does not own a running job")

    def write_events(
        self,
        connection: Connection,
        job_id: str,
        owner: str,
        attempt: int,
        after: int,
        events: Sequence[NewEvent],
    ) -> None:
        """Insert events numbered from `after` + 1, and their deliveries; the caller holds the job's row.

        The events themselves when the transaction ends (jobs/event_order.py).
        """
        connection.info[EVENTS] += [
            {
                "job_id": job_id,
                "seq": after + offset,
                "type": item.type,
                "level": item.level,
                "message": item.message,
                "data": item.data or {},
                "attempt": attempt,
                "owner": owner,
            }
            for offset, item in enumerate(events, start=1)
        ]
        enqueue_events(connection, self.now(), job_id, [item.type for item in events])


def one_row(
    connection: Connection, job_id: str, owner: str | None = None, query: Select[Any] | None = None
) -> Any:
    """The row of a job; JobNotFound without telling a stranger's job from none."""
    if NUL in job_id:
        raise JobNotFound(job_id)
    query = (select(jobs) if query is None else query).where(jobs.c.id == job_id)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return row
