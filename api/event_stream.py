"""A job's events as they happen, as server-sent events (text/event-stream).

Frames: `snapshot`, the job; then each event once, its `seq` as id; a comment after PING_S of silence; and `done`,
when the job has ended and its last event is out. Who comes back with Last-Event-ID goes on after that event. Each
frame is built once for all who follow the job (api/services/tails.py, older ones in histories.py), and a stream
waits without a thread.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from typing import Any

import orjson
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.abortable import abort
from api.held import gone
from api.schemas_job_data import EventDocument
from api.services.histories import Histories
from api.services.live import Live, Watch
from api.services.tails import Tail
from jobs.errors import StoreUnavailable
from jobs.spec import Event

PING_S = 15.0
RETRY_MS = 3000
PATIENCE_S = 15.0  # for a client to read what it was sent
LAST_PATIENCE_S = 0.5  # the same once the process is to end
LONGEST_S = 3600.0  # of one stream
KEY_CHECK_S = 2.0  # a key that was revoked or has expired does not follow a job for longer
CHUNK_BYTES = 1 << 15

Allowed = Callable[[], Awaitable[bool]]  # whether the caller may still follow


def event_frame(job_id: str, event: Event) -> bytes:
    """An event."""
    document = EventDocument(job_id=job_id, **vars(event))
    return format_sse_event(data_str=document.model_dump_json(), event=event.type, id=str(event.seq))


def snapshot_frame(document: bytes) -> bytes:
    """The job; without an id, for it is no event to go on from."""
    return format_sse_event(data_str=document.decode(), event="snapshot", retry=RETRY_MS)


def done_frame(job_id: str, status: str) -> bytes:
    """The end: a client does not come back."""
    return format_sse_event(data_str=orjson.dumps({"id": job_id, "status": status}).decode(), event="done")


def chunks(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Together, but no more at once than a client should have to take before the next are written."""
    held: list[bytes] = []
    size = 0
    for frame in frames:
        held.append(frame)
        size += len(frame)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


class FrameStream(Response):
    """Frames for one client. `watch` of `live` is what it waits with: a job's id, or another name."""

    media_type = "text/event-stream"

    def __init__(self, live: Live, watch: str, allowed: Allowed) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._live, self._watch, self._allowed = live, watch, allowed
        self._limit: asyncio.Timeout | None = None

    def frames(self, watch: Watch, leaving: "asyncio.Task[Any]") -> AsyncGenerator[bytes]:
        """What to send, to the end; it may raise StoreUnavailable."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until they or the process end, or the client goes or does not read."""
        with self._live.watch(self._watch) as watch:
            watch.stopping = self._hurry
            leaving = asyncio.create_task(gone(receive))
            leaving.add_done_callback(watch.nudge)
            try:
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await self._send(send, start)
                with suppress(StoreUnavailable):  # it ends without `done`, to be asked for again
                    async with aclosing(self.frames(watch, leaving)) as frames:
                        async for body in frames:
                            await self._send(
                                send, {"type": "http.response.body", "body": body, "more_body": True}
                            )
                await self._send(send, {"type": "http.response.body"})
            except TimeoutError:
                abort(scope)
                await asyncio.wait([leaving], timeout=LAST_PATIENCE_S)
            finally:
                if not leaving.cancel():
                    leaving.exception()  # it has been seen

    async def _send(self, send: Send, message: Message) -> None:
        """Raises TimeoutError for a client that does not read."""
        try:
            async with asyncio.timeout(PATIENCE_S) as self._limit:
                if self._live.stopping:
                    self._hurry()
                await send(message)
        finally:
            self._limit = None

    def _hurry(self) -> None:
        """The process is to end."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + LAST_PATIENCE_S)

    async def until_it_ends(
        self, watch: Watch, leaving: "asyncio.Task[Any]", new: Callable[[], Awaitable[list[bytes] | None]]
    ) -> AsyncGenerator[bytes]:
        """What `new` gives whenever there is news, and comments; to its None, if nothing else ends it before."""
        now = asyncio.get_running_loop().time
        end, ping = now() + LONGEST_S, now() + PING_S
        while not leaving.done() and not self._live.stopping and now() < end and await self._allowed():
            frames = await new()
            if frames is None:
                return
            if frames:
                for chunk in chunks(frames):
                    yield chunk
                ping = now() + PING_S
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(min(KEY_CHECK_S, ping - now())):
                    await watch.news()
            if now() >= ping:
                yield KEEPALIVE_COMMENT
                ping = now() + PING_S


class EventStream(FrameStream):
    """The events of a job with seq > after, behind a snapshot of it."""

    def __init__(
        self,
        live: Live,
        histories: Histories,
        job_id: str,
        *,
        snapshot: bytes,
        after: int,
        allowed: Allowed,
    ) -> None:
        super().__init__(live, job_id, allowed)
        self._histories, self._job_id, self._snapshot = histories, job_id, snapshot
        self._sent, self._done = after, False

    async def frames(self, watch: Watch, leaving: "asyncio.Task[Any]") -> AsyncGenerator[bytes]:
        """See FrameStream."""
        with self._live.tail(self._job_id) as tail:
            yield self._snapshot

            async def new() -> list[bytes] | None:
                seen = watch.seen
                if seen is None or self._done:  # deleted; or all is said
                    return None
                frames = await self._new(tail)
                if frames or not seen.done or self._sent < seen.event_seq:
                    return frames
                self._done = True
                return [done_frame(self._job_id, seen.status)]

            async for chunk in self.until_it_ends(watch, leaving, new):
                yield chunk

    async def _new(self, tail: Tail) -> list[bytes]:
        """Frames that follow what was sent: those at hand, or else a page of its history."""
        frames = tail.after(self._sent)
        if frames is None:
            frames = await self._histories.after(self._job_id, self._sent)
        self._sent += len(frames)
        return frames
