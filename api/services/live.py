"""What the API knows of jobs without asking the database for each request: one poller for all who follow them.

Once a tick, and only while somebody is interested, one query reads the versions of the jobs that are waited for or
were asked for lately. It reads them *by id*. The alternative, `updated_at > last look`, misses changes: a
transaction sets `updated_at` when it writes and is seen when it commits, after others that began later, and after
any overlap one would dare to name. A read by id sees what is committed, in whatever order it was.

- A version may be answered for two ticks after the query began that read it. An older one is not an answer: the
  request joins the next query, which starts at once and serves all who came meanwhile. So what another process
  writes is seen within a tick, and while the database is away requests get 503 instead of a stale 304.
- What this process has written, or read besides and answers (`saw`), takes an older version out of use before the
  answer leaves: nobody is told an older one later.

All state belongs to the event loop; only the query runs in a thread, its own.
"""

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import structlog

from api.services.job_ids import known_shape
from api.services.tails import HELD, Frame, Tail
from jobs.errors import JobNotFound, StoreUnavailable
from jobs.spec import Job
from jobs.store_jobs import JobAt
from jobs.store_live import JobVersion, LiveStore

TICK_S = 0.2
GOOD_FOR_TICKS = 2
KEPT_S = 5.0  # a job that nobody asks for any more is read so much longer
MOST_KEPT = 2000  # of the jobs that nobody waits for
MOST_EVENTS = 500  # in one read
log = structlog.get_logger("kleash.api")


@dataclass(slots=True)
class _Known:
    """A row's version, when the query began that read it, and when it was last asked for."""

    seen: JobVersion
    read_at: float
    asked_at: float


class _Read:
    """One query to come: what was asked for, and how it went."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.done = asyncio.Event()
        self.failure: StoreUnavailable | None = StoreUnavailable("the poller has ended")


class Watch:
    """Somebody who waits for news of one job."""

    def __init__(self, known: Mapping[str, _Known], job_id: str) -> None:
        self._known, self._job_id, self._news = known, job_id, asyncio.Event()
        self.stopping: Callable[[], None] | None = None  # called when the process is to end

    @property
    def seen(self) -> JobVersion | None:
        """The version last read; None if the job is gone."""
        known = self._known.get(self._job_id)
        return None if known is None else known.seen

    def nudge(self, _: object = None) -> None:
        """There may be news."""
        self._news.set()

    async def news(self) -> None:
        """Return when there may be news that came after the last return."""
        await self._news.wait()
        self._news.clear()


class Live:
    """Versions and new events of jobs. `frame` writes an event as its followers get it."""

    def __init__(self, store: LiveStore, frame: Frame, *, tick_s: float = TICK_S) -> None:
        self._store, self._frame, self._tick_s = store, frame, tick_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._known: dict[str, _Known] = {}
        self._watches: dict[str, set[Watch]] = {}
        self._tails: dict[str, Tail] = {}
        self._next, self._due = _Read(), asyncio.Event()
        self._doubted: set[str] | None = None  # while a read is under way: what changed meanwhile
        self._away = False
        self.stopping = False
        store.listen(self._changed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The time in which it answers."""
        self._loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, thread_name_prefix="live") as thread:
            poller = asyncio.create_task(self._poll(self._loop, thread))
            poller.add_done_callback(_ended)
            try:
                yield
            finally:
                self.stop()
                poller.cancel()
                await asyncio.wait([poller])
                self._next.done.set()
                self._loop = None

    def stop(self) -> None:
        """Nobody shall wait any longer."""
        self.stopping = True
        for watches in self._watches.values():
            for watch in watches:
                watch.nudge()
                if watch.stopping is not None:
                    watch.stopping()

    def at_hand(self, job_id: str) -> JobVersion | None:
        """The job's version, if one is known that may be answered."""
        known = self._known.get(job_id)
        if known is None:
            return None
        known.asked_at = asyncio.get_running_loop().time()
        return known.seen if known.asked_at - known.read_at <= GOOD_FOR_TICKS * self._tick_s else None

    async def seen(self, job_id: str, owner: str, *, afresh: bool = False) -> JobVersion:
        """The job's version, at most two ticks old, or `afresh`, by a query that begins after this call.

        Raises JobNotFound, StoreUnavailable.
        """
        seen = None if afresh else self.at_hand(job_id)
        if seen is None:
            read = self._want(known_shape(job_id))
            if self._loop is not None:
                await read.done.wait()
            if read.failure is not None:
                raise StoreUnavailable(str(read.failure)) from read.failure
            known = self._known.get(job_id)
            seen = None if known is None else known.seen
        if seen is None or seen.owner != owner:
            raise JobNotFound(job_id)
        return seen

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Watch]:
        """To wait for news of a job that has just been seen."""
        watch = Watch(self._known, job_id)
        self._watches.setdefault(job_id, set()).add(watch)
        try:
            yield watch
        finally:
            self._watches[job_id].discard(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]

    @contextmanager
    def tail(self, job_id: str) -> Iterator[Tail]:
        """The newest events of a job that is watched, and those to come."""
        if job_id not in self._tails:
            known = self._known.get(job_id)
            self._tails[job_id] = Tail(max(0, known.seen.event_seq - HELD) if known else 0)
            self._want(job_id)
        tail = self._tails[job_id]
        tail.readers += 1
        try:
            yield tail
        finally:
            tail.readers -= 1
            if not tail.readers:
                del self._tails[job_id]

    def saw(self, jobs: Iterable[Job] | Iterable[JobAt]) -> None:
        """These rows are about to be answered. It may be called from any thread."""
        self._tell([(job.id, job.version) for job in jobs])

    def _changed(self, job_ids: Iterable[str]) -> None:
        self._tell([(job_id, math.inf) for job_id in job_ids])

    def _tell(self, news: list[tuple[str, float]]) -> None:
        """An answer leaves through the loop too, so it comes after this."""
        if self._loop is not None and news:
            with suppress(RuntimeError):  # it has just been closed
                self._loop.call_soon_threadsafe(self._doubt, news)

    def _doubt(self, news: list[tuple[str, float]]) -> None:
        for job_id, version in news:
            known = self._known.get(job_id)
            if known is not None and known.seen.version >= version:
                continue
            if self._doubted is not None:
                self._doubted.add(job_id)
            if known is not None:
                known.read_at = -math.inf
            if job_id in self._watches:
                self._want(job_id)

    def _want(self, job_id: str) -> _Read:
        self._next.ids.add(job_id)
        self._due.set()
        return self._next

    async def _poll(self, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor) -> None:
        """Read what is asked for at once, and every tick what is followed."""
        tick = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(tick if self._known else None):
                    await self._due.wait()
            self._due.clear()
            began = loop.time()
            read, self._next = self._next, _Read()
            if began >= tick:
                read.ids |= self._followed(began)
                tick = began + self._tick_s
            if read.ids:
                await self._read(read, began, loop, thread)
                tick = max(tick, 2 * loop.time() - began)  # a slow database is left half of the time

    def _followed(self, now: float) -> set[str]:
        """Forget what nobody asks for any more, and name the rest."""
        idle = [job_id for job_id in self._known if job_id not in self._watches]
        idle.sort(key=lambda job_id: self._known[job_id].asked_at, reverse=True)
        for place, job_id in enumerate(idle):
            if place >= MOST_KEPT or self._known[job_id].asked_at < now - KEPT_S:
                del self._known[job_id]
        return set(self._known)

    async def _read(
        self, read: _Read, began: float, loop: asyncio.AbstractEventLoop, thread: ThreadPoolExecutor
    ) -> None:
        tails = {job_id: tail.last for job_id, tail in self._tails.items() if job_id in read.ids}
        self._doubted = set()
        try:
            rows, frames = await loop.run_in_executor(thread, self._fetch, read.ids, tails)
        except StoreUnavailable as failure:
            read.failure = failure
            if not self._away:
                log.warning("versions_unavailable")
            self._away = True
        else:
            read.failure, self._away = None, False
            self._apply(read.ids, rows, frames, began)
        finally:
            self._doubted = None
            read.done.set()

    def _fetch(
        self, job_ids: Collection[str], tails: Mapping[str, int]
    ) -> tuple[dict[str, JobVersion], list[tuple[str, int, bytes]]]:
        """In the thread: a query for the versions, and one for new events where there are some."""
        rows = self._store.job_versions(job_ids)
        behind = {
            job_id: last for job_id, last in tails.items() if job_id in rows and rows[job_id].event_seq > last
        }
        events = self._store.events_after(behind, limit=MOST_EVENTS) if behind else []
        return rows, [(job_id, event.seq, self._frame(job_id, event)) for job_id, event in events]

    def _apply(
        self,
        job_ids: Iterable[str],
        rows: Mapping[str, JobVersion],
        frames: Sequence[tuple[str, int, bytes]],
        began: float,
    ) -> None:
        news = set()
        for job_id, seq, frame in frames:
            news.add(job_id)
            if job_id in self._tails:
                self._tails[job_id].append(seq, frame)
            if len(frames) == MOST_EVENTS:
                self._want(job_id)  # there may be more
        for job_id in job_ids:
            row, known = rows.get(job_id), self._known.get(job_id)
            read_at = -math.inf if self._doubted and job_id in self._doubted else began
            if row != (known.seen if known else None):
                news.add(job_id)
            if row is None:
                self._known.pop(job_id, None)
            elif known is None:
                self._known[job_id] = _Known(row, read_at, began)
            else:
                known.seen, known.read_at = row, read_at
        for job_id in news & self._watches.keys():
            for watch in self._watches[job_id]:
                watch.nudge()


def _ended(poller: "asyncio.Task[None]") -> None:
    """An error that the poller does not expect ends the process: without it every poll would wait for ever."""
    if not poller.cancelled() and (error := poller.exception()) is not None:
        log.error("loop_failed", loop="Live", error=type(error).__qualname__)
        os.kill(os.getpid(), signal.SIGTERM)
