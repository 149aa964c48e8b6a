"""The events of all jobs of an owner, for those who follow them: one query a tick for everybody's.

Positions of an owner's events are those of their commits (jobs/event_order.py), so reading on after the last one
known misses nothing. Where a position is missing, its job has been deleted.
"""

import asyncio
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import structlog
from anyio.to_thread import run_sync

from api.services.live import TICK_S, Watch
from api.services.tails import HELD
from jobs.errors import StoreUnavailable
from jobs.store_live import LiveStore, OwnerEvent

MOST_EVENTS = 500  # of an owner, in one read
log = structlog.get_logger("kleash.api")

FeedFrame = Callable[[OwnerEvent], bytes]  # an event as a stream sends it


class Feed:
    """Frames of an owner's newest events: all that there are with positions after `floor`, up to `head`."""

    def __init__(self, head: int) -> None:
        self.floor = self.head = head
        self.watches: set[Watch] = set()
        self._frames: deque[tuple[int, bytes]] = deque()

    def append(self, frames: list[tuple[int, bytes]], head: int) -> None:
        """What follows `head`, up to another."""
        self._frames.extend(frames)
        self.head = head
        while len(self._frames) > HELD:
            self.floor = self._frames.popleft()[0]
        for watch in self.watches:
            watch.nudge()

    def after(self, position: int) -> list[bytes] | None:
        """The frames of what came later; None if the first of these are not held (any more)."""
        if position < self.floor:
            return None
        return [frame for place, frame in self._frames if place > position]


class Feeds:
    """The feed of each owner that somebody follows. All state belongs to the event loop."""

    def __init__(self, store: LiveStore, frame: FeedFrame, *, tick_s: float = TICK_S) -> None:
        self._store, self._frame, self._tick_s = store, frame, tick_s
        self._feeds: dict[str, Feed] = {}
        self._wanted = asyncio.Event()
        self._away = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time in which feeds grow."""
        with ThreadPoolExecutor(1, thread_name_prefix="feeds") as thread:
            poller = asyncio.create_task(self._poll(thread))
            poller.add_done_callback(_ended)
            try:
                yield
            finally:
                poller.cancel()
                await asyncio.wait([poller])

    async def head(self, owner: str, after: int = 0) -> int:
        """The owner's last position, or one of a tick ago that is not before `after`. Raises StoreUnavailable."""
        feed = self._feeds.get(owner)
        if feed is not None and feed.head >= after:
            return feed.head
        return (await run_sync(self._store.event_heads, [owner]))[owner]

    @contextmanager
    def follow(self, owner: str, head: int, watch: Watch) -> Iterator[Feed]:
        """The owner's feed, from a `head` that it was just seen to have, or further on."""
        feed = self._feeds.setdefault(owner, Feed(head))
        feed.watches.add(watch)
        self._wanted.set()
        try:
            yield feed
        finally:
            feed.watches.discard(watch)
            if not feed.watches:
                del self._feeds[owner]

    async def _poll(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began = loop.time()
            more = await self._read(loop, thread)
            if not self._feeds:
                self._wanted.clear()
            took = loop.time() - began
            await asyncio.sleep(
                took if more else max(self._tick_s - took, took)
            )  # leave a slow database half

    async def _read(self, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor) -> bool:
        """True if there is more to read."""
        known = {owner: feed.head for owner, feed in self._feeds.items()}
        try:
            found = await loop.run_in_executor(thread, self._fetch, known)
        except StoreUnavailable:
            if not self._away:
                log.warning("feeds_unavailable")
            self._away = True
            return False
        self._away, more = False, False
        for owner, (frames, head) in found.items():
            feed = self._feeds.get(owner)
            if feed is not None and feed.head == known[owner]:  # or it is a new one, of who came meanwhile
                feed.append(frames, head)
                more = more or len(frames) == MOST_EVENTS
        return more

    def _fetch(self, known: Mapping[str, int]) -> dict[str, tuple[list[tuple[int, bytes]], int]]:
        """In the thread: a query for the heads, and one for the events of each owner that has new ones."""
        found = {}
        for owner, head in self._store.event_heads(known).items():
            if head > known[owner]:
                events = self._store.owner_events(owner, after=known[owner], limit=MOST_EVENTS)
                reached = events[-1].position if events else head
                if len(events) < MOST_EVENTS:
                    reached = max(reached, head)
                found[owner] = [(event.position, self._frame(event)) for event in events], reached
        return found


def _ended(poller: "asyncio.Task[None]") -> None:
    """An error that the poller does not expect ends the process: without it streams would wait for ever."""
    if not poller.cancelled() and (error := poller.exception()) is not None:
        log.error("loop_failed", loop="Feeds", error=type(error).__qualname__)
        os.kill(os.getpid(), signal.SIGTERM)
