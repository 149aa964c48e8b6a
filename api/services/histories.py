"""Older events of jobs, ready to be sent: a page is read once for all who follow a job from its beginning.

Events are numbered from 1 without gaps and never change, so a page that is full is the same for ever.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from anyio.to_thread import run_sync

from api.services.tails import Frame
from jobs.spec import Event

PAGE = 100  # events
MOST_BYTES = 16 << 20

Read = Callable[[str, int, int], list[Event]]  # events of a job after a seq, at most so many
_Place = tuple[str, int]  # a job's id and the number of a page


class Histories:
    """The pages that were last asked for, as frames. It belongs to the event loop."""

    def __init__(self, read: Read, frame: Frame, *, most_bytes: int = MOST_BYTES) -> None:
        self._read, self._frame, self._most_bytes, self._bytes = read, frame, most_bytes, 0
        self._kept: OrderedDict[_Place, list[bytes]] = OrderedDict()
        self._reading: dict[_Place, asyncio.Task[list[bytes]]] = {}

    async def after(self, job_id: str, seq: int) -> list[bytes]:
        """Frames of the next events after `seq`, at most a page, fewer where there are no more.

        Raises StoreUnavailable.
        """
        number, known = divmod(seq, PAGE)
        place = job_id, number
        frames = self._kept.get(place)
        if frames is None:
            task = self._reading.get(place)
            if task is None:
                task = self._reading[place] = asyncio.create_task(self._fetch(place))
            frames = await asyncio.shield(task)  # one who leaves does not end it for the others
        else:
            self._kept.move_to_end(place)
        return frames[known:]

    async def _fetch(self, place: _Place) -> list[bytes]:
        try:
            frames = await run_sync(self._frames, *place)
        finally:
            del self._reading[place]
        if len(frames) == PAGE:
            self._kept[place] = frames
            self._bytes += _size(frames)
            while self._bytes > self._most_bytes:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return frames

    def _frames(self, job_id: str, number: int) -> list[bytes]:
        return [self._frame(job_id, event) for event in self._read(job_id, number * PAGE, PAGE)]


def _size(frames: list[bytes]) -> int:
    return sum(map(len, frames))
