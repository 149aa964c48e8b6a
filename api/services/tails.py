"""The newest events of a job, ready to be sent, for everybody who follows it."""

from collections import deque
from collections.abc import Callable
from itertools import islice

from jobs.spec import Event

HELD = 256  # events of one job

Frame = Callable[[str, Event], bytes]  # an event of the job with this id, as a stream sends it


class Tail:
    """Frames of consecutive events, the last of them number `last`."""

    def __init__(self, last: int) -> None:
        self.last, self.readers = last, 0
        self._frames: deque[bytes] = deque(maxlen=HELD)

    def append(self, seq: int, frame: bytes) -> None:
        """The next event; any other is left out."""
        if seq == self.last + 1:
            self._frames.append(frame)
            self.last = seq

    def after(self, seq: int) -> list[bytes] | None:
        """The frames of what came after event `seq`; None if the first of these is not held (any more)."""
        missing = seq - (self.last - len(self._frames))
        return None if missing < 0 else list(islice(self._frames, missing, None))
