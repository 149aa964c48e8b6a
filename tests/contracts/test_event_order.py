"""Positions of an owner's events are in the order of their commits, whoever began first: no reader skips one."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, text

from jobs import event_order
from jobs.sql_base import READ_ONLY
from jobs.sql_store import SqlStore
from jobs.store_live import OwnerEvent
from tests.contracts.store_jobs import SPEC, create

WRITERS, EACH, PAGE = 8, 25, 7


@pytest.fixture
def writer(clean: SqlStore) -> Iterator[SqlStore]:
    """A store on its own connections, on the database's clock."""
    store = SqlStore(clean.engine.url.render_as_string(hide_password=False), lock_wait_s=60.0)
    yield store
    store.close()


class Reader:
    """Goes on from the last position that it has seen, as a follower does."""

    def __init__(self, store: SqlStore, owner: str = "me") -> None:
        self.store, self.owner, self.found = store, owner, list[OwnerEvent]()

    def read(self) -> None:
        while True:
            after = self.found[-1].position if self.found else 0
            page = self.store.owner_events(self.owner, after=after, limit=PAGE)
            self.found += page
            if len(page) < PAGE:
                return

    @property
    def jobs(self) -> list[str]:
        return [item.job_id for item in self.found]


class Held:
    """Keeps the first transaction of a store that inserts an event in its commit: all is written, nothing seen."""

    def __init__(self, store: SqlStore) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        event.listen(store.engine, "commit", self._commit)

    def _commit(self, _connection: Any) -> None:
        if not self.there.is_set():
            self.there.set()
            assert self.go.wait(60)


def waits_or_is_done(store: SqlStore, done: Any) -> None:
    """Return when the other transaction waits for a lock, or has been committed."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    while not done():
        if store.engine.dialect.name == "sqlite":
            return  # its writers wait before they write anything
        with store.reading() as connection:
            if connection.execute(waiting).scalar_one():
                return
        time.sleep(0.01)


def overtaken(store: SqlStore, url: str, second_owner: str = "me") -> tuple[list[str], bool]:
    """What a reader has found that reads before and after the commit of job_1's event, which was written first.

    And whether job_2's was committed meanwhile.
    """
    first, reader = SqlStore(url, lock_wait_s=60.0), Reader(store)
    held = Held(first)
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(create, first, "job_1")
        assert held.there.wait(60)
        two = pool.submit(store.create_job, "job_2", second_owner, SPEC, {})
        waits_or_is_done(store, two.done)
        overtook = two.done()
        reader.read()
        held.go.set()
        one.result()
        two.result()
    reader.read()
    first.close()
    return reader.jobs, overtook


def test_an_event_that_is_committed_late_is_not_skipped(writer: SqlStore) -> None:
    url = writer.engine.url.render_as_string(hide_password=False)
    assert overtaken(writer, url) == (["job_1", "job_2"], False)


def test_numbers_that_are_taken_before_the_commit_would_skip_it(
    writer: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sequence gives them: the reader above does lose an event then. SQLite has one writer at a time."""
    if writer.engine.dialect.name == "sqlite":
        pytest.skip("no other transaction can write meanwhile")
    numbers = iter(range(1000))
    monkeypatch.setattr(event_order, "_reserve", lambda *_: next(numbers))
    url = writer.engine.url.render_as_string(hide_password=False)
    assert overtaken(writer, url) == (["job_2"], True)


def test_owners_do_not_wait_for_each_other(writer: SqlStore) -> None:
    url = writer.engine.url.render_as_string(hide_password=False)
    found, overtook = overtaken(writer, url, second_owner="you")
    assert found == ["job_1"]
    assert overtook == (writer.engine.dialect.name == "postgresql")
    assert writer.event_heads(["me", "you", "nobody"]) == {"me": 1, "you": 1, "nobody": 0}


class Aborted(Exception):
    """A transaction that has written everything is rolled back."""


def test_writers_in_any_order_lose_and_repeat_nothing(writer: SqlStore) -> None:
    """Commits take their time, some transactions are rolled back at the end; two owners' readers follow."""
    rng = random.Random(8)
    readers, written = [Reader(writer, owner) for owner in ("me", "you")], threading.Event()

    def commit(connection: Any) -> None:
        if not connection.get_execution_options().get(READ_ONLY):
            time.sleep(rng.choice([0.0, 0.0, 0.002, 0.02]))
            if rng.random() < 0.2:
                raise Aborted

    def write(number: int) -> list[str]:
        made = []
        for count in range(EACH):
            job_id = f"job_{number}_{count}"
            with suppress(Aborted):
                writer.create_job(job_id, readers[count % 2].owner, SPEC, {})
                made.append(job_id)
        return made

    def follow(reader: Reader) -> None:
        while not written.is_set():
            reader.read()
        reader.read()

    event.listen(writer.engine, "commit", commit)
    with ThreadPoolExecutor(WRITERS + 2) as pool:
        following = [pool.submit(follow, reader) for reader in readers]
        writing = [pool.submit(write, number) for number in range(WRITERS)]
        made = [job_id for done in writing for job_id in done.result()]
        written.set()
        for done in following:
            done.result()
    assert len(made) < WRITERS * EACH
    assert sorted(readers[0].jobs + readers[1].jobs) == sorted(made)
    for reader in readers:
        assert [item.position for item in reader.found] == list(range(1, len(reader.found) + 1))  # no hole


def test_deletions_leave_holes_and_positions_go_on(store: SqlStore) -> None:
    for number in range(3):
        create(store, f"job_{number}")
    with store.writing() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id IN ('job_0', 'job_2')"))
    assert [(e.position, e.job_id) for e in store.owner_events("me", after=0, limit=9)] == [(2, "job_1")]
    create(store, "job_3")
    assert store.event_heads(["me"]) == {"me": 4}
    assert [e.position for e in store.owner_events("me", after=2, limit=9)] == [4]
