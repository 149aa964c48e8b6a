"""The events of all jobs of an owner, as server-sent events: as those of a job (api/event_stream.py), without end.

Frames: `ready`, which says where the stream begins; then each event once, its position among the owner's events as
id; a comment after a silence. Who comes back with Last-Event-ID goes on after that event.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from anyio.to_thread import run_sync
from fastapi.sse import format_sse_event

from api import event_stream
from api.event_stream import Allowed, FrameStream
from api.schemas_job_data import EventDocument
from api.services.feeds import Feed, Feeds
from api.services.histories import PAGE
from api.services.live import Live, Watch
from jobs.store_live import OwnerEvent

Backfill = Callable[[int, int], list[OwnerEvent]]  # events of the owner after a position, at most so many


def feed_frame(found: OwnerEvent) -> bytes:
    """An event."""
    document = EventDocument(job_id=found.job_id, **vars(found.event))
    return format_sse_event(
        data_str=document.model_dump_json(), event=found.event.type, id=str(found.position)
    )


def ready_frame(position: int, *, lost: bool) -> bytes:
    """Where the stream begins. `lost`: the caller knows of later events, which are not there (any more)."""
    data = orjson.dumps({"position": position, "lost": lost}).decode()
    return format_sse_event(data_str=data, event="ready", id=str(position), retry=event_stream.RETRY_MS)


class FeedStream(FrameStream):
    """The events of an owner after a position; after None, those to come. `head` is one of feeds.head's."""

    def __init__(
        self,
        live: Live,
        feeds: Feeds,
        owner: str,
        *,
        head: int,
        after: int | None,
        backfill: Backfill,
        allowed: Allowed,
    ) -> None:
        super().__init__(live, f"feed of {owner}", allowed)  # no job has such an id
        self._feeds, self._owner, self._backfill, self._head = feeds, owner, backfill, head
        self._lost = after is not None and after > head
        self._sent = head if after is None or self._lost else after

    async def frames(self, watch: Watch, leaving: "asyncio.Task[Any]") -> AsyncGenerator[bytes]:
        """See FrameStream."""
        with self._feeds.follow(self._owner, self._head, watch) as feed:
            yield ready_frame(self._sent, lost=self._lost)

            async def new() -> list[bytes]:
                return await self._new(feed)

            async for chunk in self.until_it_ends(watch, leaving, new):
                yield chunk

    async def _new(self, feed: Feed) -> list[bytes]:
        """Frames that follow what was sent: those at hand, or else a page from the database."""
        while True:
            head, frames = feed.head, feed.after(self._sent)
            if frames is not None:
                self._sent = max(self._sent, head)
                return frames
            events = await run_sync(self._backfill, self._sent, PAGE)
            whole = len(events) < PAGE  # then nothing is left up to the head of before
            self._sent = max([head] * whole + [event.position for event in events])
            if events:
                return [feed_frame(event) for event in events]
