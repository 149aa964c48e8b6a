"""Positions of an owner's events are in the order of their commits, whoever began first: no reader skips one."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from api import feed_stream
from api.app import create_app
from api.services import feeds
from jobs import sql_base
from jobs.schema import job_events
from jobs.settings import Settings
from jobs.sql_base import READ_ONLY
from jobs.sql_store import SqlStore
from jobs.store_live import OwnerEvent
from tests.api.conftest import FakeBroker, FakeScorer
from tests.api.live_client import Connection, listening
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
    """The reader above does lose an event then. SQLite has one writer at a time."""
    if writer.engine.dialect.name == "sqlite":
        pytest.skip("no other transaction can write meanwhile")
    numbers = iter(range(1, 1000))

    def as_a_sequence_does(connection: Any, _upsert: Any, rows: list[dict[str, Any]], now: Any) -> None:
        placed = [row | {"position": next(numbers)} for row in rows]
        connection.execute(insert(job_events).values(created_at=now), placed)

    monkeypatch.setattr(sql_base, "insert_in_order", as_a_sequence_does)
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


def write_at_once(writer: SqlStore, owners: list[str]) -> list[str]:
    """Threads make jobs of these owners; commits take their time, and some are rolled back. The jobs there are."""
    rng = random.Random(8)

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
                writer.create_job(job_id, owners[count % len(owners)], SPEC, {})
                made.append(job_id)
        return made

    event.listen(writer.engine, "commit", commit)
    with ThreadPoolExecutor(WRITERS) as pool:
        made = [job_id for done in pool.map(write, range(WRITERS)) for job_id in done]
    event.remove(writer.engine, "commit", commit)
    assert 0 < len(made) < WRITERS * EACH
    return made


def test_writers_in_any_order_lose_and_repeat_nothing(writer: SqlStore) -> None:
    readers, written = [Reader(writer, owner) for owner in ("me", "you")], threading.Event()

    def follow(reader: Reader) -> None:
        while not written.is_set():
            reader.read()
        reader.read()

    with ThreadPoolExecutor(2) as pool:
        following = [pool.submit(follow, reader) for reader in readers]
        made = write_at_once(writer, ["me", "you"])
        written.set()
        for done in following:
            done.result()
    assert sorted(readers[0].jobs + readers[1].jobs) == sorted(made)
    for reader in readers:
        assert [item.position for item in reader.found] == list(range(1, len(reader.found) + 1))  # no hole


def test_streams_over_http_that_are_cut_lose_and_repeat_nothing(
    writer: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each goes on from its Last-Event-ID, from memory or from the database, until it has seen the last job."""
    monkeypatch.setattr(feeds, "HELD", 5)
    monkeypatch.setattr(feed_stream, "PAGE", PAGE)
    app_store = SqlStore(writer.engine.url.render_as_string(hide_password=False))
    settings = Settings(data=tmp_path, unsafe_no_auth=True)
    app = create_app(settings, store=app_store, broker=FakeBroker(), scorer=FakeScorer())

    async def follow(port: int, seed: int) -> list[str]:
        rng, last, seen = random.Random(seed), 0, list[str]()
        while True:
            async with await Connection.to(port) as stream:
                stream.ask("/v1/events/stream", Last_Event_ID=str(last))
                await stream.head()
                left = rng.randrange(20)
                async for frame in stream.frames():
                    if frame.get("event") == "job.created":
                        assert int(frame["id"]) == last + 1
                        last = int(frame["id"])
                        seen.append(json.loads(frame["data"])["job_id"])
                        if seen[-1] == "job_last":
                            return seen
                    left -= 1
                    if left < 0:
                        break  # what is under way is lost

    async def follow_all(port: int) -> None:
        following = [asyncio.create_task(follow(port, seed)) for seed in range(5)]
        made = await asyncio.to_thread(write_at_once, writer, ["local", "another"])
        writer.create_job("job_last", "local", SPEC, {})
        found = await asyncio.gather(*following)
        mine = [job_id for job_id in made if int(job_id.rpartition("_")[2]) % 2 == 0]
        assert sorted(found[0]) == sorted([*mine, "job_last"])
        assert found == [found[0]] * len(found)

    with listening(app) as port:
        asyncio.run(follow_all(port))
    app_store.close()


def test_deletions_leave_holes_and_positions_go_on(store: SqlStore) -> None:
    for number in range(3):
        create(store, f"job_{number}")
    with store.writing() as connection:
        connection.execute(text("DELETE FROM jobs WHERE id IN ('job_0', 'job_2')"))
    assert [(e.position, e.job_id) for e in store.owner_events("me", after=0, limit=9)] == [(2, "job_1")]
    create(store, "job_3")
    assert store.event_heads(["me"]) == {"me": 4}
    assert [e.position for e in store.owner_events("me", after=2, limit=9)] == [4]
