"""What a job's processes printed, read from the file of each attempt."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from api.confined import open_below, size_of
from api.services.job_ids import known_shape
from jobs.attempt_log import MOST_HEAD, Head, first_line, head_of, log_path
from jobs.metric_series import RunMark
from jobs.store import Store

PAGE_BYTES = 256 * 1024  # read for one page of one attempt
LINE_BYTES = 16 * 1024  # a longer line comes in pieces
WHOLE_BYTES = 16 * 2**20  # more than a file ever has
TRIES = 5
CURSOR = re.compile(r"([0-9]{1,9})\.([0-9]{1,18})")


class LogCursor(NamedTuple):
    """Up to where a client has read: an attempt, and the offset of the byte after its last line."""

    attempt: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> "LogCursor | None":
        """The inverse of `str`; None for anything else."""
        match = CURSOR.fullmatch(text)
        return match and cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.attempt}.{self.offset}"


class LogLine(NamedTuple):
    """A line without its end, or a piece of a long one; `offset` is that of its first byte."""

    attempt: int
    offset: int
    text: str


class LogPage(NamedTuple):
    """Lines in their order; `cursor` is where to go on, now if there is `more`, or later."""

    lines: list[LogLine]
    cursor: LogCursor | None
    more: bool


class Piece(NamedTuple):
    """Some bytes of a log; `at_end` if none follow so far."""

    offset: int
    content: bytes
    at_end: bool


class LogService:
    """The logs of a store's jobs, below `artifacts`. Every call may raise JobNotFound."""

    def __init__(self, store: Store, artifacts: Path) -> None:
        self._store, self._artifacts = store, artifacts

    def page(
        self, job_id: str, owner: str, *, attempt: int | None, after: LogCursor | None, limit: int
    ) -> LogPage:
        """Lines after the cursor, of one attempt or of all. A line that is not complete yet is not shown."""
        mark = self._store.run_mark(known_shape(job_id), owner)
        lines: list[LogLine] = []
        for number in _attempts(mark, attempt):
            if after is not None and number < after.attempt:
                continue
            offset = after.offset if after is not None and number == after.attempt else 0
            piece = self._read(job_id, number, offset, PAGE_BYTES)
            if piece is None:
                continue
            found, end = split(piece, number, complete=_ended(mark, number))
            taken = found[: limit - len(lines)]
            left = len(found) > len(taken)
            after = LogCursor(number, found[len(taken)].offset if left else end)
            lines += taken
            if left or not piece.at_end:
                return LogPage(lines, after, more=True)
        return LogPage(lines, after, more=False)

    def tail(self, job_id: str, owner: str, *, attempt: int | None, number: int) -> LogPage:
        """The last lines of an attempt: the last one that has printed something, if none is given."""
        mark = self._store.run_mark(known_shape(job_id), owner)
        for each in reversed(_attempts(mark, attempt)):
            piece = self._read(job_id, each, -PAGE_BYTES, PAGE_BYTES)
            if piece is not None and piece.content:
                lines, end = split(piece, each, complete=_ended(mark, each))
                return LogPage(lines[-number:], LogCursor(each, end), more=False)
        return LogPage([], None, more=False)

    def whole(self, job_id: str, owner: str, *, attempt: int | None) -> Iterator[bytes]:
        """All that is there, an attempt after the other."""
        mark = self._store.run_mark(known_shape(job_id), owner)
        return self._contents(job_id, _attempts(mark, attempt))

    def _contents(self, job_id: str, attempts: range) -> Iterator[bytes]:
        for number in attempts:
            if (piece := self._read(job_id, number, 0, WHOLE_BYTES)) is not None:
                yield (first_line(piece.offset) if piece.offset else b"") + piece.content

    def _read(self, job_id: str, attempt: int, offset: int, most: int) -> Piece | None:
        """Bytes from an offset, or from what is left after it; counted from the end if negative.

        None without a file.
        """
        try:
            with open_below(self._artifacts, log_path(job_id, attempt)) as file:
                return read_piece(file, offset, most)
        except OSError:
            return None


def read_piece(file: BinaryIO, offset: int, most: int) -> Piece:
    """See LogService._read. Its writer may give up the file's beginning at any moment: then it is read again."""
    for _ in range(TRIES):
        head = _head(file)
        if offset < 0:
            place = max(head.length, size_of(file) + offset)
        else:
            place = head.length + max(0, offset - head.left_out)
        content = os.pread(file.fileno(), most, place)
        if _head(file) == head:
            return Piece(head.left_out + place - head.length, content, at_end=len(content) < most)
    return Piece(max(0, offset), b"", at_end=True)


def _head(file: BinaryIO) -> Head:
    return head_of(os.pread(file.fileno(), MOST_HEAD, 0))


def split(piece: Piece, attempt: int, *, complete: bool) -> tuple[list[LogLine], int]:
    """The lines, and the offset after them; without the beginning of one that is not complete yet."""
    lines: list[LogLine] = []
    content, at = piece.content, 0
    while at < len(content):
        end = content.find(b"\n", at, at + LINE_BYTES)
        if end >= 0:
            text, after = content[at:end], end + 1
        else:
            if len(content) - at < LINE_BYTES and not (complete and piece.at_end):
                break
            after = _before_character(content, at, min(at + LINE_BYTES, len(content)))
            text = content[at:after]
        lines.append(LogLine(attempt, piece.offset + at, text.decode("utf-8", "replace")))
        at = after
    return lines, piece.offset + at


def _before_character(content: bytes, start: int, end: int) -> int:
    """The place up to three bytes before `end` that cuts no UTF-8 character in two."""
    if end == len(content):
        return end
    for place in range(end, max(start, end - 4), -1):
        if content[place] & 0xC0 != 0x80:
            return place
    return end


def _attempts(mark: RunMark, attempt: int | None) -> range:
    if attempt is None:
        return range(1, mark.attempt + 1)
    return range(attempt, attempt + 1) if attempt <= mark.attempt else range(0)


def _ended(mark: RunMark, attempt: int) -> bool:
    return attempt < mark.attempt or not mark.running
