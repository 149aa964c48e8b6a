"""What a client asks of a job's metrics as series, and what the database gives back."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

Choice = Literal["minmax", "last", "none"]
TIMINGS = "timings/"  # a timing's key is `timings/<name>`
LEAST_POINTS, MOST_POINTS = 4, 2000  # of a series in one answer
CURSOR = re.compile(r"s([0-9]{1,9})\.a([0-9]{1,9})")


class Cursor(NamedTuple):
    """The last step that a client has, and the attempt that wrote it."""

    step: int
    attempt: int

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """The inverse of `str`; None for anything else."""
        match = CURSOR.fullmatch(text)
        return match and cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"s{self.step}.a{self.attempt}"


class RunMark(NamedTuple):
    """How far a job is: what its metrics depend on. `running` while an attempt may add to its log."""

    step: int
    attempt: int
    running: bool


@dataclass(frozen=True, kw_only=True)
class SeriesQuery:
    """`patterns` are keys, in which `*` stands for anything; none means all.

    Of a series longer than `most`, `choose` keeps each bucket's lowest and highest point (`minmax`) or its last
    one (`last`), and the series' first and last; `none` keeps them all, and only `most` steps. `times` asks for
    the time of each step that is kept.
    """

    patterns: tuple[str, ...] = ()
    from_step: int = 0
    to_step: int | None = None
    most: int = 500
    choose: Choice = "minmax"
    after: Cursor | None = None
    times: bool = False

    def wants(self, key: str) -> bool:
        """True if the key matches a pattern."""
        return not self.patterns or any(fnmatchcase(key, pattern) for pattern in self.patterns)


class PointSeries(NamedTuple):
    """One key's points by step, chosen from `n` in the range that was asked for."""

    key: str
    n: int
    points: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class SeriesAnswer:
    """Series by key, of completed steps only.

    `cursor` belongs to the last step that was looked at. `rewritten_from` is the first step that another attempt
    has written again, or that is not there any more, since the query's cursor: what a client has from there on
    is void. `more` if steps follow that did not fit. `times` are those of the steps in `series`, in seconds since
    the epoch; None unless the query asks for them.
    """

    last_step: int
    cursor: Cursor | None
    rewritten_from: int | None
    more: bool
    series: list[PointSeries]
    times: dict[int, float] | None
