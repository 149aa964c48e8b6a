"""A job's events as a stream: each once, in order, for as many as follow it, however often they are cut off."""

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
from sqlalchemy import update
from starlette.testclient import TestClient

from api import event_stream, keyring
from api.services import histories, tails
from api.services.live import TICK_S
from jobs.schema_keys import api_keys
from jobs.settings import Settings
from jobs.spec import Event, Job, NewEvent
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.api.acting import claimed, queued
from tests.api.conftest import NewKey
from tests.api.live_client import Connection, counted, listening

FOLLOWERS = 100
NOTES = 25


@pytest.fixture
def served(new_app: Callable[[Settings], FastAPI], settings: Settings) -> FastAPI:
    """An application over the store, for `listening`."""
    return new_app(settings)


@pytest.fixture
def job(store: SqlStore, spec: dict[str, Any]) -> Job:
    """It runs: event 1 is its creation, 2 its start."""
    return claimed(store, queued(store, spec))


def note(store: SqlStore, job: Job, text: str = "") -> None:
    store.add_event(job.id, job.attempt, NewEvent(type="note", message=text))


async def followed(port: int, job: Job, path: str = "", **headers: str) -> list[dict[str, str]]:
    """The frames of a stream that ends by itself."""
    async with await Connection.to(port) as stream:
        stream.ask(f"/v1/jobs/{job.id}/events/stream{path}", **headers)
        status, answered = await stream.head()
        assert (status, answered["content-type"]) == (200, "text/event-stream; charset=utf-8")
        return [frame async for frame in stream.frames()]


def seqs(frames: list[dict[str, str]]) -> list[int]:
    return [int(frame["id"]) for frame in frames if "id" in frame]


def test_a_stream_is_a_snapshot_the_events_and_the_end(
    client: TestClient, served: FastAPI, store: SqlStore, job: Job
) -> None:
    note(store, job, "line\nbreak\r\n\x00")
    store.finish(job.id, job.attempt, Status.SUCCEEDED)
    with listening(served) as port:
        frames = asyncio.run(followed(port, job))
        snapshot, *events, done = frames
        assert (snapshot["event"], snapshot["retry"]) == ("snapshot", "3000")
        assert json.loads(snapshot["data"]) == client.get(f"/v1/jobs/{job.id}").json()
        assert "id" not in snapshot
        page = client.get(f"/v1/jobs/{job.id}/events").json()["data"]
        assert [json.loads(frame["data"]) for frame in events] == page
        assert [(frame["event"], int(frame["id"])) for frame in events] == [
            (e["type"], e["seq"]) for e in page
        ]
        assert (done["event"], "id" in done) == ("done", False)
        assert json.loads(done["data"]) == {"id": job.id, "status": "succeeded"}

        assert seqs(asyncio.run(followed(port, job, "?after=2"))) == [3, 4]
        assert seqs(asyncio.run(followed(port, job, "?after=2", Last_Event_ID="3"))) == [4]
        last = asyncio.run(followed(port, job, Last_Event_ID="4"))
        assert [frame["event"] for frame in last] == ["snapshot", "done"]


def test_who_may_not_see_the_job_follows_nothing(client: TestClient, job: Job) -> None:
    assert client.get(f"/v1/jobs/job_{'0' * 32}/events/stream").status_code == 404
    url = f"/v1/jobs/{job.id}/events/stream"
    assert client.get(url, headers={"Last-Event-ID": "x"}).status_code == 422
    assert client.get(url, params={"after": -1}).status_code == 422


@pytest.mark.parametrize("held", [3, tails.HELD])
def test_streams_cut_at_any_point_give_each_event_once_in_order(
    served: FastAPI, store: SqlStore, job: Job, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Also where the events at hand begin later than a stream has come: then a page comes from the database."""
    monkeypatch.setattr("api.services.tails.HELD", held)
    monkeypatch.setattr("api.services.live.HELD", held)
    monkeypatch.setattr(histories, "PAGE", 4)

    async def follow(port: int, seed: int) -> list[int]:
        rng, seen = random.Random(seed), list[int]()
        while True:
            async with await Connection.to(port) as stream:
                headers = {"Last_Event_ID": str(seen[-1])} if seen else {}
                stream.ask(f"/v1/jobs/{job.id}/events/stream", **headers)
                await stream.head()
                left = rng.randrange(12)
                async for frame in stream.frames():
                    if frame.get("event") == "done":
                        return seen
                    if "id" in frame:
                        seen.append(int(frame["id"]))
                    left -= 1
                    if left < 0:
                        break  # the connection is cut, frames under way are lost

    async def follow_all(port: int) -> None:
        run = threading.Thread(target=write)
        run.start()
        found = await asyncio.gather(*(follow(port, seed) for seed in range(8)))
        run.join()
        expected = list(range(1, NOTES + 4))  # created, started, the notes, succeeded
        assert found == [expected] * len(found)

    def write() -> None:
        rng = random.Random(0)
        for _ in range(NOTES):
            note(store, job)
            time.sleep(rng.choice([0, 0, 0.01, 0.05]))
        store.finish(job.id, job.attempt, Status.SUCCEEDED)

    with listening(served) as port:
        asyncio.run(follow_all(port))


def test_many_streams_cost_one_query_a_tick_and_one_more_for_what_is_new(
    served: FastAPI, store: SqlStore, job: Job, spec: dict[str, Any]
) -> None:
    jobs = [job, *(claimed(store, queued(store, spec)) for _ in range(9))]

    async def follow(port: int) -> None:
        streams = [await Connection.to(port) for _ in range(FOLLOWERS)]
        for number, stream in enumerate(streams):
            stream.ask(f"/v1/jobs/{jobs[number % len(jobs)].id}/events/stream")
            await stream.head()
        frames = [stream.frames() for stream in streams]
        for stream in frames:
            assert [(await anext(stream))["event"] for _ in range(3)] == [
                "snapshot",
                "job.created",
                "job.started",
            ]

        with counted(store, "event_seq, jobs.status") as queries, counted(store, "FROM job_events") as reads:
            began = time.monotonic()
            await asyncio.sleep(4 * TICK_S)
            # One more, because a tick of before may reach the database only now.
            assert queries() <= (time.monotonic() - began) / TICK_S + 2
            assert reads() == 0
        with counted(store, "FROM job_events") as reads:
            for each in jobs:
                note(store, each)
            for stream in frames:
                assert (await anext(stream))["id"] == "3"
            assert 1 <= reads() <= len(jobs)  # these writes are this process's own, and so wait for no tick
        for connection in streams:
            connection.writer.transport.abort()

    with listening(served) as port:
        asyncio.run(follow(port))


def test_a_crowd_that_follows_a_job_from_its_beginning_reads_its_history_once(
    served: FastAPI, store: SqlStore, job: Job
) -> None:
    """What lies before the events at hand is read by page: once, not once for each stream."""
    pages = 5
    notes = [
        NewEvent(type="note", message=str(number)) for number in range(tails.HELD + pages * histories.PAGE)
    ]
    with store.writing() as connection:
        store.change_run(connection, job.id, job.attempt, {}, notes)
    store.finish(job.id, job.attempt, Status.SUCCEEDED)

    async def follow_all(port: int) -> None:
        with counted(store, "FROM job_events") as reads:
            found = await asyncio.gather(*(followed(port, job) for _ in range(FOLLOWERS // 4)))
            assert reads() <= pages + 2  # and what the last HELD are read by
        expected = list(range(1, len(notes) + 4))
        assert [seqs(frames) for frames in found] == [expected] * len(found)
        assert found[0][1:] == found[-1][1:]

    with listening(served) as port:
        asyncio.run(follow_all(port))


def test_a_history_keeps_no_more_than_it_may(store: SqlStore, job: Job) -> None:
    """And gives the same when a page has to be read again, or was not full yet when it was read before."""

    async def walk(history: histories.Histories, after: int) -> list[bytes]:
        found: list[bytes] = []
        while frames := await history.after(job.id, after + len(found)):
            found += frames
        return found

    async def check() -> None:
        small = histories.Histories(read, event_stream.event_frame, most_bytes=60_000)
        first = await walk(small, 0)
        assert len(first) == 253
        assert len(small._kept) == 1  # of two that are full
        assert small._bytes == sum(len(frame) for page in small._kept.values() for frame in page) <= 60_000
        note(store, job)
        again = await walk(small, 130)
        assert again[:-1] == first[130:]
        assert b"id: 254\n" in again[-1]

    def read(job_id: str, after: int, limit: int) -> list[Event]:
        return store.list_events(job_id, after=after, limit=limit)

    with store.writing() as connection:
        notes = [NewEvent(type="note", message="x" * 200)] * 251
        store.change_run(connection, job.id, job.attempt, {}, notes)
    asyncio.run(check())


def test_a_key_that_is_revoked_or_expires_ends_its_streams(
    new_app: Callable[[Settings], FastAPI],
    settings: Settings,
    store: SqlStore,
    job: Job,
    new_key: NewKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within KEY_CHECK_S and the keyring's second."""
    monkeypatch.setattr(event_stream, "KEY_CHECK_S", 0.1)
    monkeypatch.setattr(keyring, "FRESH_S", 0.2)
    kept, revoked, expiring = new_key("local"), new_key("local"), new_key("local")

    async def follow(port: int) -> None:
        connections = [await Connection.to(port) for _ in range(30)]
        for connection, key in zip(connections, [kept, revoked, expiring] * 10, strict=True):
            connection.ask(f"/v1/jobs/{job.id}/events/stream?after=2", **key)
            assert (await connection.head())[0] == 200
        streams = [connection.frames() for connection in connections]
        assert {(await anext(stream))["event"] for stream in streams} == {"snapshot"}
        revoked_id, expiring_id = (key["Authorization"].split("_")[1] for key in (revoked, expiring))
        store.revoke_key(revoked_id)  # as another process would
        with store.writing() as connection:  # its time is over, however long all this took
            connection.execute(update(api_keys).where(api_keys.c.id == expiring_id).values(expires_at=1.0))
        async with asyncio.timeout(60):
            for stream in streams[1::3] + streams[2::3]:
                assert [frame async for frame in stream] == []
        note(store, job)
        assert [(await anext(stream))["event"] for stream in streams[::3]] == ["note"] * 10
        for connection in connections:
            connection.writer.transport.abort()

    with listening(new_app(settings.model_copy(update={"unsafe_no_auth": False}))) as port:
        asyncio.run(follow(port))


def test_silence_is_filled_with_comments(served: FastAPI, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "PING_S", 0.05)

    async def follow(port: int) -> None:
        async with await Connection.to(port) as stream:
            stream.ask(f"/v1/jobs/{job.id}/events/stream?after=2")
            await stream.head()
            frames = stream.frames()
            assert (await anext(frames))["event"] == "snapshot"
            assert [await anext(frames) for _ in range(3)] == [{"": "ping"}] * 3

    with listening(served) as port:
        asyncio.run(follow(port))


def test_a_client_that_does_not_read_is_dropped_and_can_go_on(
    served: FastAPI, store: SqlStore, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        event_stream, "PATIENCE_S", 2.0
    )  # more than a busy machine keeps the quick one from reading
    live = served.state.parts.live
    for _ in range(40):
        note(store, job, "x" * 200_000)  # more than the buffers between the two hold

    async def follow(port: int) -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", port))
        async with await Connection.to(port) as quick:
            quick.ask(f"/v1/jobs/{job.id}/events/stream")
            narrow.sendall(
                f"GET /v1/jobs/{job.id}/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            )
            await quick.head()
            frames = quick.frames()
            found = [await anext(frames) for _ in range(43)]  # the snapshot, created, started, the notes
            assert seqs(found) == list(range(1, 43))
            async with asyncio.timeout(60):
                while sum(map(len, live._watches.values())) > 1:
                    await asyncio.sleep(0.02)
            note(store, job)
            assert (await anext(frames))["id"] == "43"  # nobody else is
        narrow.close()
        store.finish(job.id, job.attempt, Status.SUCCEEDED)
        assert seqs(await followed(port, job, Last_Event_ID="7")) == list(range(8, 45))

    with listening(served) as port:
        asyncio.run(follow(port))
