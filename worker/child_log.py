"""What a child prints: read from a pipe into a file of bounded size, so that no child can fill the disk."""

import contextlib
import os
import select
import threading
from pathlib import Path

from jobs.attempt_log import MOST_HEAD, first_line, head_of

FILE_BYTES = 4 * 2**20
CHUNK_BYTES = 65_536
TAIL_BYTES = 16_384
TAIL_LINES = 40  # a traceback of ours has some thirty
DRAIN_S = 5.0  # for what a dead child's descendants still print


class ChildLog:
    """The pipe's two ends, and the thread between pipe and file. The end is always kept, the middle is not."""

    def __init__(self, file: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._file = file.open("ab+", buffering=0)
        self._size, self._limit = self._file.seek(0, os.SEEK_END), file_bytes
        self._last = b""
        self._child_ended = threading.Event()
        self._pipe, self.child_end = os.pipe()
        self._thread = threading.Thread(target=self._pump, name="child-log", daemon=True)

    def start(self) -> None:
        """The child has its end: close ours, begin to read."""
        os.close(self.child_end)
        self._thread.start()

    def finish(self) -> None:
        """The child has ended: returns once what it printed is in the file."""
        self._child_ended.set()
        if self._thread.ident is not None:
            self._thread.join(DRAIN_S)

    def tail(self) -> tuple[str, ...]:
        """The last lines."""
        return tuple(self._last.decode(errors="replace").splitlines()[-TAIL_LINES:])

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            ended = (
                self._child_ended.is_set()
            )  # asked before looking: an empty pipe after it means all is read
            if poll.poll(0 if ended else 100):
                chunk = os.read(self._pipe, CHUNK_BYTES)
                if not chunk:
                    break
                self._keep(chunk)
            elif ended:
                break
        os.close(self._pipe)
        self._file.close()

    def _keep(self, chunk: bytes) -> None:
        self._last = (self._last + chunk)[-TAIL_BYTES:]
        with contextlib.suppress(OSError):  # a full disk costs the log, not the job
            if self._size + len(chunk) > self._limit:
                self._forget_the_middle()
            self._size += self._file.write(chunk)

    def _forget_the_middle(self) -> None:
        self._file.seek(0)
        head = head_of(self._file.read(MOST_HEAD))
        start = max(head.length, self._size - self._limit // 2)
        self._file.seek(start)
        end = self._file.read(self._size - start)
        self._file.truncate(0)
        kept = first_line(head.left_out + start - head.length) + end
        self._size = self._file.write(kept)
