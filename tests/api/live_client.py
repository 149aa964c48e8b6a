"""A real server in a thread of this process, and clients on bare sockets that see every byte."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI
from sqlalchemy import event

from api.abortable import AbortableProtocol
from jobs.sql_store import SqlStore

PATIENCE_S = 60.0


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """Its port."""
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        access_log=False,
        http=AbortableProtocol,
        timeout_graceful_shutdown=5,
        backlog=2048,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        live = app.state.parts.live
        live._loop.call_soon_threadsafe(live.stop)  # signals do not reach this thread
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class Answer(NamedTuple):
    """What a poll got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.body)


class Connection:
    """One keep-alive connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int, **options: Any) -> "Connection":
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def ask(self, path: str, method: str = "GET", **headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(PATIENCE_S):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.strip().split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, _, value in pairs}

    async def answer(self) -> Answer:
        status, headers = await self.head()
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)

    async def get(self, path: str, **headers: str) -> Answer:
        self.ask(path, **headers)
        return await self.answer()

    async def frames(self) -> AsyncIterator[dict[str, str]]:
        """The fields of each frame of a stream; a comment is the field ``."""
        async for chunk in self._chunks():
            for frame in chunk.decode().strip().split("\n\n"):
                fields = (line.partition(":") for line in frame.split("\n"))
                yield {name: value.removeprefix(" ") for name, _, value in fields}

    async def _chunks(self) -> AsyncIterator[bytes]:
        """A chunk holds whole frames."""
        while True:
            async with asyncio.timeout(PATIENCE_S):
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                chunk = (await self.reader.readexactly(size + 2))[:-2]
            if not size:
                return
            yield chunk


@contextmanager
def counted(store: SqlStore, part: str) -> Iterator[Callable[[], int]]:
    """How many statements with this part the store's engine has executed since."""
    count = 0

    def executed(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal count
        count += part in statement

    event.listen(store.engine, "before_cursor_execute", executed)
    try:
        yield lambda: count
    finally:
        event.remove(store.engine, "before_cursor_execute", executed)
