"""What a line of a file may be: an item to score, or a text to train on; the same for API and worker. Torch-free.

Lines end with a line feed and nothing else: U+2028 and its kin may stand inside a JSON string.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import orjson
from pydantic import ValidationError

from jobs.bulk import BulkItem

MAX_LINE_BYTES = 1_000_000
Purpose = Literal["prompts", "texts", "items"]
FIELDS = {"prompts": "prompt", "texts": "text"}  # where a line of these has its text


class BadLine(NamedTuple):
    """Why a line is not what it should be; the message repeats nothing of it."""

    code: str
    detail: str
    context: Mapping[str, int] | None = None  # the numbers of the message, where it has some


def parse_line(number: int, raw: bytes | None) -> BulkItem | BadLine:
    """The item of a line, or what is wrong with it; None is a line that is too long."""
    if raw is None:
        return BadLine("line_too_long", f"line {number} has more than {MAX_LINE_BYTES} bytes")
    try:
        return BulkItem.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError:
        return BadLine("malformed_json", f"line {number} is not JSON")
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part in BulkItem.model_fields)
        return BadLine("validation_error", f"line {number}: {where + ': ' if where else ''}{first['msg']}")


def text_of(number: int, raw: bytes, field: str) -> str | BadLine:
    """The text of a line: a JSON string, or an object's `field`; or what is wrong with it."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return BadLine("malformed_json", f"line {number} is not JSON")
    text = value.get(field) if isinstance(value, dict) else value
    if isinstance(text, str) and text:
        return text
    return BadLine("validation_error", f"line {number} is neither a text nor an object with a text `{field}`")


class LineCheck:
    """Counts the lines of a file that arrives in parts, and keeps what is wrong with the first bad one."""

    def __init__(self, purpose: Purpose) -> None:
        self.lines = 0  # that are not blank
        self.problem: BadLine | None = None
        self._purpose: Purpose = purpose
        self._number, self._rest = 0, b""

    def feed(self, part: bytes) -> None:
        """Look at the lines that end in this part."""
        if self.problem is not None:
            return
        *whole, self._rest = (self._rest + part).split(b"\n")
        for line in whole:
            self._look_at(line)
        if len(self._rest) >= MAX_LINE_BYTES:
            self._look_at(self._rest)

    def end(self) -> None:
        """Look at what the last line feed left over."""
        self._look_at(self._rest)
        if not self.lines and self.problem is None:
            self.problem = BadLine("no_line", "the file has no line")

    def _look_at(self, line: bytes) -> None:
        self._number += 1
        if self.problem is not None or not line.strip():
            return
        self.lines += 1
        found: object
        if len(line) >= MAX_LINE_BYTES:  # with its line feed, one more
            found = parse_line(self._number, None)
        elif self._purpose == "items":
            found = parse_line(self._number, line)
        else:
            found = text_of(self._number, line, FIELDS[self._purpose])
        if isinstance(found, BadLine):
            self.problem = found
