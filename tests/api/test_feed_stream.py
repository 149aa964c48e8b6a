"""The events of all jobs of a caller as one stream: none lost, none twice, none of a stranger's."""

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api import event_stream, feed_stream, keyring
from api.services import feeds
from api.services.live import TICK_S
from jobs.errors import StoreUnavailable
from jobs.settings import Settings
from jobs.spec import Job, NewEvent
from jobs.sql_store import SqlStore
from jobs.states import Action
from jobs.system import SystemRng
from tests.api.acting import claimed, queued
from tests.api.conftest import NewKey
from tests.api.live_client import Connection, counted, listening

URL = "/v1/events/stream"
FOLLOWERS, NOTES = 60, 25


@pytest.fixture
def served(new_app: Callable[[Settings], FastAPI], settings: Settings) -> FastAPI:
    """An application over the store, for `listening`."""
    return new_app(settings)


@pytest.fixture
def job(store: SqlStore, spec: dict[str, Any]) -> Job:
    """It runs: positions 1 and 2."""
    return claimed(store, queued(store, spec))


def note(store: SqlStore, job: Job, text: str = "") -> None:
    store.add_event(job.id, job.attempt, NewEvent(type="note", message=text))


def of_another(store: SqlStore, job: Job) -> None:
    """Two events of a job that the caller must not see."""
    made = store.create_job(SystemRng().job_id(), "another", job.spec, {}).job
    store.request(made.id, Action.CANCEL)


async def opened(port: int, path: str = URL, **headers: str) -> tuple[Connection, Any, dict[str, str]]:
    """A connection, its frames, and the first of them."""
    connection = await Connection.to(port)
    connection.ask(path, **headers)
    status, answered = await connection.head()
    assert (status, answered["content-type"]) == (200, "text/event-stream; charset=utf-8")
    frames = connection.frames()
    first = await anext(frames)
    assert (first["event"], first["retry"]) == ("ready", "3000")
    return connection, frames, first


async def taken(frames: Any, count: int) -> list[dict[str, str]]:
    """The next frames that are no comments."""
    found: list[dict[str, str]] = []
    while len(found) < count:
        frame = await anext(frames)
        found += [frame] if "event" in frame else []
    return found


def test_a_stream_begins_now_or_where_it_was_and_has_all_jobs(
    client: TestClient, served: FastAPI, store: SqlStore, job: Job, spec: dict[str, Any]
) -> None:
    async def follow(port: int) -> None:
        connection, frames, first = await opened(port)
        assert (first["id"], json.loads(first["data"])) == ("2", {"position": 2, "lost": False})
        second = queued(store, spec)
        of_another(store, job)
        note(store, job, "line\nbreak\r\n\x00")
        store.request(second, Action.CANCEL)
        found = await taken(frames, 3)
        assert [(frame["id"], frame["event"]) for frame in found] == [
            ("3", "job.created"),
            ("4", "note"),
            ("5", "job.cancelled"),
        ]
        pages = {name: client.get(f"/v1/jobs/{name}/events").json()["data"] for name in (second, job.id)}
        expected = [pages[second][0], pages[job.id][2], pages[second][1]]
        assert [json.loads(frame["data"]) for frame in found] == expected
        for path, header, ids in (
            (f"{URL}?after=0", None, ["1", "2", "3", "4", "5"]),
            (f"{URL}?after=1", "3", ["4", "5"]),
            (URL, "4", ["5"]),
        ):
            again = await opened(port, path, **({"Last_Event_ID": header} if header else {}))
            assert [frame["id"] for frame in await taken(again[1], len(ids))] == ids
            again[0].writer.transport.abort()
        lost = await opened(port, Last_Event_ID="6")  # of a database that was put back, say
        assert json.loads(lost[2]["data"]) == {"position": 5, "lost": True}
        note(store, job)
        for stream in (frames, lost[1]):
            assert (await taken(stream, 1))[0]["id"] == "6"
        for each in (connection, lost[0]):
            each.writer.transport.abort()
        async with asyncio.timeout(30):
            while served.state.parts.feeds._feeds:  # until all of it comes from the database
                await asyncio.sleep(0.02)
        client.delete(f"/v1/jobs/{second}")
        again = await opened(port, f"{URL}?after=2")
        assert [frame["id"] for frame in await taken(again[1], 2)] == ["4", "6"]
        again[0].writer.transport.abort()

    with listening(served) as port:
        asyncio.run(follow(port))
    for bad in ("-1", "x", "9" * 19):
        assert client.get(URL, headers={"Last-Event-ID": bad}).status_code == 422
        assert client.get(URL, params={"after": bad}).status_code == 422


@pytest.mark.parametrize("held", [3, feeds.HELD])
def test_streams_cut_at_any_point_give_each_event_once_in_order(
    served: FastAPI,
    store: SqlStore,
    job: Job,
    spec: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    held: int,
) -> None:
    """Several threads write, jobs are deleted; readers that come late get pages from the database."""
    monkeypatch.setattr(feeds, "HELD", held)
    monkeypatch.setattr(feed_stream, "PAGE", 4)
    monkeypatch.setattr(feeds, "MOST_EVENTS", 5)
    jobs = [job, *(claimed(store, queued(store, spec)) for _ in range(3))]

    def write(number: int) -> None:
        rng = random.Random(number)
        for count in range(NOTES):
            note(store, jobs[number], str(count))
            of_another(store, job)
            gone = queued(store, spec)
            store.request(gone, Action.CANCEL)
            store.delete_job(gone)
            time.sleep(rng.choice([0, 0, 0.01, 0.05]))

    async def follow(port: int, seed: int) -> list[tuple[str, str]]:
        rng, seen, last = random.Random(seed), list[tuple[str, str]](), "0"
        while True:
            stream, frames, first = await opened(port, Last_Event_ID=last)
            assert first["id"] == last
            left = rng.randrange(12)
            async for frame in frames:
                if "id" not in frame:
                    continue
                assert int(frame["id"]) > int(last)
                last = frame["id"]
                event = json.loads(frame["data"])
                if event["type"] == "note":
                    seen.append((event["job_id"], event["message"]))
                if event["type"] == "job.cancelled" and event["job_id"] == job.id:
                    stream.writer.transport.abort()
                    return seen
                left -= 1
                if left < 0:
                    break  # the connection is cut, frames under way are lost
            stream.writer.transport.abort()

    async def follow_all(port: int) -> None:
        writers = [threading.Thread(target=write, args=[number]) for number in range(len(jobs))]
        for writer in writers:
            writer.start()
        following = [asyncio.create_task(follow(port, seed)) for seed in range(6)]
        for writer in writers:
            await asyncio.to_thread(writer.join)
        store.request(job.id, Action.CANCEL)
        store.hand_back(job.id, job.attempt, reason="asked")
        found = await asyncio.gather(*following)
        for each in jobs:
            for seen in found:
                assert [text for name, text in seen if name == each.id] == [str(n) for n in range(NOTES)]
        assert all(seen == found[0] for seen in found)

    with listening(served) as port:
        asyncio.run(follow_all(port))


def test_many_streams_cost_one_query_a_tick_and_one_more_for_what_is_new(
    served: FastAPI, store: SqlStore, job: Job
) -> None:
    async def follow(port: int) -> None:
        streams = [await opened(port) for _ in range(FOLLOWERS)]
        with counted(store, "FROM event_heads") as queries, counted(store, "FROM job_events") as reads:
            began = time.monotonic()
            await asyncio.sleep(4 * TICK_S)
            assert 1 <= queries() <= (time.monotonic() - began) / TICK_S + 1
            assert reads() == 0
            note(store, job)
            for _, frames, _ in streams:
                assert (await taken(frames, 1))[0]["id"] == "3"
            assert reads() == 1
        for connection, _, _ in streams:
            connection.writer.transport.abort()
        async with asyncio.timeout(30):
            while served.state.parts.feeds._feeds:
                await asyncio.sleep(0.02)
        await asyncio.sleep(2 * TICK_S)
        with counted(store, "FROM event_heads") as queries:
            await asyncio.sleep(3 * TICK_S)
            assert queries() == 0  # nobody looks

    with listening(served) as port:
        asyncio.run(follow(port))


def test_streams_sit_out_an_outage_of_the_database(
    served: FastAPI, store: SqlStore, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_owners: object) -> dict[str, int]:
        asked.append(1)
        raise StoreUnavailable("away")

    asked: list[int] = []

    async def follow(port: int) -> None:
        connection, frames, _ = await opened(port)
        with monkeypatch.context() as patch:
            patch.setattr(store, "event_heads", away)
            note(store, job)
            async with asyncio.timeout(30):
                while len(asked) < 2:
                    await asyncio.sleep(0.02)
        note(store, job)
        assert [frame["id"] for frame in await taken(frames, 2)] == ["3", "4"]
        connection.writer.transport.abort()

    with listening(served) as port:
        asyncio.run(follow(port))


def test_a_key_follows_its_owner_s_jobs_until_it_is_revoked_or_expires(
    new_app: Callable[[Settings], FastAPI],
    settings: Settings,
    store: SqlStore,
    job: Job,
    new_key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_stream, "KEY_CHECK_S", 0.1)
    monkeypatch.setattr(keyring, "FRESH_S", 0.2)
    kept, revoked, expiring = new_key("local"), new_key("local"), new_key("local", expires_in_s=1.5)

    async def follow(port: int) -> None:
        stranger = await opened(port, **new_key("stranger"))
        assert json.loads(stranger[2]["data"]) == {"position": 0, "lost": False}
        streams = [await opened(port, **key) for key in [kept, revoked, expiring] * 5]
        store.revoke_key(revoked["Authorization"].split("_")[1])  # as another process would
        async with asyncio.timeout(10):
            for _, frames, _ in streams[1::3] + streams[2::3]:
                assert [frame async for frame in frames] == []
        note(store, job)
        of_another(store, job)
        for _, frames, _ in streams[::3]:
            assert (await taken(frames, 1))[0]["event"] == "note"
        store.create_job(SystemRng().job_id(), "stranger", job.spec, {})
        (made,) = await taken(stranger[1], 1)
        assert (made["id"], made["event"]) == ("1", "job.created")
        for connection, _, _ in [*streams, stranger]:
            connection.writer.transport.abort()

    with listening(new_app(settings.model_copy(update={"unsafe_no_auth": False}))) as port:
        asyncio.run(follow(port))


def test_a_client_that_does_not_read_is_dropped_and_can_go_on(
    served: FastAPI, store: SqlStore, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "PATIENCE_S", 1.0)
    watches = served.state.parts.live._watches
    for _ in range(40):
        note(store, job, "x" * 200_000)  # more than the buffers between the two hold

    async def follow(port: int) -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", port))
        narrow.sendall(f"GET {URL}?after=2 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(30):
            while not watches:
                await asyncio.sleep(0.02)
        connection, frames, _ = await opened(port, f"{URL}?after=2")
        assert [int(frame["id"]) for frame in await taken(frames, 40)] == list(range(3, 43))
        async with asyncio.timeout(30):
            while sum(map(len, watches.values())) > 1:
                await asyncio.sleep(0.02)
        note(store, job)
        assert (await taken(frames, 1))[0]["id"] == "43"  # nobody else is
        narrow.close()
        again = await opened(port, Last_Event_ID="7")
        assert [int(frame["id"]) for frame in await taken(again[1], 36)] == list(range(8, 44))
        for each in (connection, again[0]):
            each.writer.transport.abort()

    with listening(served) as port:
        asyncio.run(follow(port))
