"""The input of a score job: read line by line, in windows of a fixed number of items, never as a whole.

A window is a function of the file and its number alone, so whoever reads it again gets the same items.
"""

import hashlib
import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import orjson

from jobs.bulk import BulkItem, ScoreConfig
from jobs.lines import MAX_LINE_BYTES, BadLine, parse_line
from jobs.real_paths import open_real
from worker.failures import DatasetError

READ_BYTES = 1 << 20


class Line(NamedTuple):
    """An item with the number of its line, from 1."""

    number: int
    item: BulkItem | BadLine


class Cursor(NamedTuple):
    """A place between two lines: what lies before it, with its sha256."""

    lines: int
    bytes: int
    sha256: str


class Window(NamedTuple):
    """Consecutive items, and the place behind them."""

    number: int  # from 0
    lines: list[Line]
    end: Cursor


def open_input(config: ScoreConfig, file: str | None) -> BinaryIO:
    """The file, or the request's own items as one. Raises DatasetError."""
    if config.items is not None:
        rows = (
            item if isinstance(item, str) else item.model_dump(exclude_unset=True) for item in config.items
        )
        return io.BytesIO(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    assert file is not None
    try:
        return open_real(file)
    except OSError as error:
        raise DatasetError(f"items_file cannot be read: {error.strerror}") from error


def count_items(file: BinaryIO, sha256: str | None = None) -> int:
    """The items of the whole input; the position afterwards is its start.

    Raises:
        DatasetError: it has none, or is not the file with this sha256.
    """
    reader = Reader(file)
    count = sum(1 for _ in reader.raw())
    file.seek(0)
    if sha256 is not None and reader.sha256 != sha256:
        raise DatasetError("items_file is not what was uploaded")
    if not count:
        raise DatasetError("items_file has no line")
    return count


class Reader:
    """Reads windows, with a running sha256 of all bytes before the next line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self._lines = self._bytes = 0

    @property
    def sha256(self) -> str:
        """Of all that was read."""
        return self._sha256.hexdigest()

    def skip_to(self, cursor: Cursor) -> None:
        """Go on from there. Raises DatasetError if what lies before it is not what it was."""
        left = cursor.bytes
        while left and (part := self._file.read(min(left, READ_BYTES))):
            self._sha256.update(part)
            left -= len(part)
        if left or self.sha256 != cursor.sha256:
            raise DatasetError("items_file has changed since the job began")
        self._lines, self._bytes = cursor.lines, cursor.bytes

    def windows(self, first: int, items: int) -> Iterator[Window]:
        """Windows of `items` items from here, numbered from `first`; the last one may be shorter."""
        lines: list[Line] = []
        for number, raw in self.raw():
            lines.append(Line(number, parse_line(number, raw)))
            if len(lines) == items:
                yield Window(first, lines, self._here())
                lines, first = [], first + 1
        if lines:
            yield Window(first, lines, self._here())

    def raw(self) -> Iterator[tuple[int, bytes | None]]:
        """Number and bytes of every line that is not blank; None for one that is too long."""
        while part := self._readline():
            self._lines += 1
            whole: bytes | None = part
            while not part.endswith(b"\n") and (part := self._readline()):
                whole = None
            if whole is None or whole.strip():
                yield self._lines, whole

    def _readline(self) -> bytes:
        line = self._file.readline(MAX_LINE_BYTES)
        self._sha256.update(line)
        self._bytes += len(line)
        return line

    def _here(self) -> Cursor:
        return Cursor(self._lines, self._bytes, self.sha256)
