"""The log of one attempt: a file of bounded size, of which only the middle may be missing.

A byte's offset is its place in all that was printed. Where the file's beginning was given up, its first line says
how many bytes that were, so an offset means the same before and after.
"""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

LOG_NAME = "log.txt"  # in the attempt's folder
MOST_HEAD = 80  # bytes that hold the first line, if it is ours
LEFT_OUT = re.compile(rb"\[(\d{1,18}) bytes of earlier output were left out\]\n")


class Head(NamedTuple):
    """How many bytes were given up, and how long the line is that says so: 0 and 0 if none were."""

    left_out: int
    length: int


def first_line(left_out: int) -> bytes:
    """Of a file whose beginning was given up."""
    return b"[%d bytes of earlier output were left out]\n" % left_out


def head_of(beginning: bytes) -> Head:
    """Of a file that begins so."""
    match = LEFT_OUT.match(beginning)
    return Head(0, 0) if match is None else Head(int(match[1]), match.end())


def log_path(job_id: str, attempt: int) -> str:
    """Relative to the artifacts root."""
    return str(PurePosixPath(job_id, str(attempt), LOG_NAME))
