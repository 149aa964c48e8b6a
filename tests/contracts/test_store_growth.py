"""What a query costs does not grow with the jobs that it does not answer: counted, not timed.

On SQLite the steps of its machine are counted, on PostgreSQL the pages that a query touches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, select, text

from jobs.schema import job_events, jobs
from jobs.schema_jobs import job_labels, label_of
from jobs.sql_store import SqlStore
from jobs.states import Status
from jobs.store_jobs import JobFilter
from tests.contracts.store_jobs import create

FEW, MANY, PAGE = 300, 6000, 20
ENDED = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


def in_status(*names: str) -> Callable[[SqlStore], Any]:
    return lambda store: store.list_versions(owner="me", where=JobFilter(statuses=names), limit=PAGE)


def of_team(team: str, *names: str) -> Callable[[SqlStore], Any]:
    where = JobFilter(metadata={"team": team}, statuses=names)
    return lambda store: store.list_versions(owner="me", where=where, limit=PAGE)


ASKED: dict[str, Callable[[SqlStore], Any]] = {
    "first page": lambda s: s.list_jobs(owner="me", limit=PAGE),
    "oldest first": lambda s: s.list_jobs(owner="me", limit=PAGE, oldest_first=True),
    "from the middle": lambda s: s.list_jobs(owner="me", after=job_id(FEW // 2), limit=PAGE),
    "none is queued": in_status("queued"),
    "one is paused": in_status("paused"),
    "none is pausing": in_status("pausing"),
    "live ones": in_status("queued", "running", "pausing", "cancelling", "paused"),
    "ended ones": in_status("succeeded", "failed", "cancelled"),
    "how many wait": lambda s: s.count_jobs(owner="me", where=JobFilter(statuses=("queued", "paused"))),
    "of no team": of_team("x"),
    "of a large team": of_team("rl"),
    "failed ones of a team": of_team("rl", "failed"),
    "live ones of a team": of_team("rl", "queued", "running", "paused"),
    "one job": lambda s: s.get_job("job_1"),
    "its place": lambda s: s.queue_place(s.get_job("job_1")),
    "its version": lambda s: s.job_versions(["job_1"]),
    "its events": lambda s: s.list_events("job_1"),
    "a create": lambda s: create(s, "job_new", queued_limit=1000),
    "a retention that deletes none": lambda s: s.expired_jobs(older_than_s=1e6),
    "a retention that deletes all": lambda s: s.expired_jobs(older_than_s=-1e6, limit=PAGE),
    "to be sent": lambda s: s.undispatched(resend_after_s=60, running_limit=3),
    "to be reaped": lambda s: s.reap(),
    "the queue": lambda s: s.queue_state(),
}


def job_id(number: int) -> str:
    return f"job_{number:032x}"


def add(store: SqlStore, numbers: range) -> None:
    """Jobs of "me" that have ended, every third in the same way, with an event each, half of them of a team."""
    with store.writing() as connection:
        like = dict(connection.execute(select(jobs).where(jobs.c.id == "job_1")).mappings().one())
        rows = [
            like | {"id": job_id(n), "status": ENDED[n % 3], "created_at": 1.0 * n, "finished_at": 2.0 * n}
            for n in numbers
        ]
        connection.execute(insert(jobs), rows)
        happened = {"seq": 1, "type": "t", "level": "info", "message": "m", "data": {}, "attempt": 1}
        connection.execute(
            insert(job_events), [happened | {"job_id": job_id(n), "created_at": 1.0} for n in numbers]
        )
        of_team = [
            {"owner": "me", "label": label_of("team", "rl"), "job_id": job_id(n)} for n in numbers if n % 2
        ]
        connection.execute(insert(job_labels), of_team)
    if store.engine.dialect.name == "postgresql":
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE jobs, job_events, job_labels"))


@contextmanager
def cost(store: SqlStore) -> Iterator[Callable[[], int]]:
    """Tells what its queries have cost, in hundreds of steps or in pages."""
    spent = [0]

    def count_steps(connection: Any, *_: object) -> None:
        def more() -> None:
            spent[0] += 1

        connection.set_progress_handler(more, 100)

    def count_pages(connection: Any, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if statement.startswith(("SELECT", "WITH")):
            with connection.connection.driver_connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
                plan = cursor.fetchone()[0][0]["Plan"]
            spent[0] += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]

    sqlite = store.engine.dialect.name == "sqlite"
    store.engine.dispose()  # new connections are counted
    heard = ("connect", count_steps) if sqlite else ("before_cursor_execute", count_pages)
    event.listen(store.engine, *heard)
    try:
        yield lambda: spent[0]
    finally:
        event.remove(store.engine, *heard)
        store.engine.dispose()


@pytest.fixture
def asked(store: SqlStore) -> SqlStore:
    """One job waits, one is paused, FEW have ended."""
    create(store)
    add(store, range(1, FEW + 1))
    with store.writing() as connection:
        connection.execute(
            jobs.update().where(jobs.c.id == job_id(2)).values(status=Status.PAUSED, finished_at=None)
        )
    return store


def test_what_is_asked_costs_no_more_among_many_jobs(asked: SqlStore) -> None:
    def costs() -> dict[str, int]:
        found = {}
        for name, ask in ASKED.items():
            with cost(asked) as spent:
                ask(asked)
                found[name] = spent()
            asked_for = asked.list_jobs(owner="me", where=JobFilter(statuses=("queued",)), limit=PAGE)
            if len(asked_for) > 1:  # the one that was created
                with asked.writing() as connection:
                    connection.execute(jobs.delete().where(jobs.c.id == "job_new"))
        return found

    few = costs()
    add(asked, range(FEW + 1, MANY + 1))
    many = costs()
    grown = {name: (few[name], many[name]) for name in ASKED if many[name] > 2 * few[name] + 20}
    assert grown == {}
