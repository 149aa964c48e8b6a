"""Clients that follow jobs' events and cost little: plain sockets, chunks taken apart by hand."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson

from benchmarks.http.service import Service

PATIENCE_S = 120.0


class Received(NamedTuple):
    """One event at one client: when it was written, and when it was here (seconds since the epoch)."""

    seq: int
    type: str
    written: float
    at: float


class Follower:
    """A client of one stream. `frames` are the names of what it was sent, `events` the events among them."""

    def __init__(self, job_id: str) -> None:
        self.job_id, self.frames, self.events = job_id, list[str](), list[Received]()
        self.begun = asyncio.Event()  # the snapshot is here

    async def follow(self, service: Service) -> None:
        """Until `done`. Raises RuntimeError where the stream ends without it."""
        address = urlsplit(service.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        request = f"GET /v1/jobs/{self.job_id}/events/stream HTTP/1.1\r\nHost: {address.netloc}\r\n"
        writer.write(f"{request}Authorization: Bearer {service.key}\r\n\r\n".encode())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(f"a stream was refused: {head.decode()}")
            held = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                held += (await reader.readexactly(size + 2))[:-2]
                *frames, held = held.split(b"\n\n")
                for frame in frames:
                    self._take(frame)
            if self.frames[-1:] != ["done"]:
                raise RuntimeError(f"a stream ended without `done`: {self.frames[-3:]}")
        finally:
            writer.close()

    def _take(self, frame: bytes) -> None:
        at = time.time()
        fields = dict(line.split(b": ", 1) for line in frame.splitlines() if not line.startswith(b":"))
        if not fields:  # a comment
            return
        self.frames.append(fields[b"event"].decode())
        self.begun.set()
        if b"id" in fields:
            written = datetime.fromisoformat(orjson.loads(fields[b"data"])["created_at"]).timestamp()
            self.events.append(Received(int(fields[b"id"]), self.frames[-1], written, at))

    def check(self, events: int) -> None:
        """Raises RuntimeError unless it was sent a snapshot, each event of the job once, in order, and `done`."""
        ordered = [event.seq for event in self.events] == list(range(1, events + 1))
        if not ordered or [self.frames[0], self.frames[-1]] != ["snapshot", "done"]:
            numbers = [event.seq for event in self.events]
            raise RuntimeError(
                f"{self.job_id} has {events} events; a client was sent {numbers}, {self.frames}"
            )
        if self.frames.count("snapshot") + self.frames.count("done") + events != len(self.frames):
            raise RuntimeError(f"a client was sent {self.frames}")


@asynccontextmanager
async def followers(service: Service, job_ids: Sequence[str]) -> AsyncIterator[list[Follower]]:
    """One for each id, all of them begun; at the end all must have been sent `done`.

    Raises RuntimeError, TimeoutError.
    """
    clients = [Follower(job_id) for job_id in job_ids]
    async with asyncio.TaskGroup() as tasks:
        for client in clients:
            tasks.create_task(client.follow(service))
        async with asyncio.timeout(PATIENCE_S):
            for client in clients:
                await client.begun.wait()
        yield clients
        await asyncio.sleep(0)
