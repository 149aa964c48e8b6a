"""A run's metrics as rules look at them: the first rows, the last ones, means with errors."""

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, variance
from typing import NamedTuple

LARGEST = 1e100


class Row(NamedTuple):
    """The metrics of one step, by the names of docs/algorithms.md."""

    step: int
    metrics: Mapping[str, float]


def usable(row: Row, *names: str) -> bool:
    """True if the row has all of these metrics, as numbers whose squares are numbers too."""
    return all(abs(row.metrics.get(name, math.nan)) < LARGEST for name in names)


class Window(NamedTuple):
    """A metric at some steps, ascending."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the values."""
        return fmean(self.values)

    @property
    def se(self) -> float:
        """Of the mean, from the scatter between steps; a trend inside the window makes it larger."""
        return math.sqrt(variance(self.values) / len(self.values))

    def halves(self) -> tuple["Window", "Window"]:
        """The earlier and the later half."""
        middle = len(self.steps) // 2
        early = Window(self.steps[:middle], self.values[:middle])
        return early, Window(self.steps[middle:], self.values[middle:])


class History:
    """Rows by step. A row that lacks a metric is not there for that metric."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = sorted(rows, key=lambda row: row.step)

    def all(self, *names: str) -> list[Window]:
        """A window per name over the steps that report all of these names, as usable numbers."""
        rows = [row for row in self.rows if usable(row, *names)]
        steps = tuple(row.step for row in rows)
        return [Window(steps, tuple(row.metrics[name] for row in rows)) for name in names]

    def last(self, count: int, *names: str) -> list[Window] | None:
        """The last `count` steps that report all of `names`; None where there are fewer."""
        windows = self.all(*names)
        if len(windows[0].steps) < count:
            return None
        return [Window(window.steps[-count:], window.values[-count:]) for window in windows]

    def ends(self, count: int, name: str) -> tuple[Window, Window] | None:
        """The first and the last `count` steps of a metric; None where they overlap."""
        (window,) = self.all(name)
        if len(window.steps) < 2 * count:
            return None
        first = Window(window.steps[:count], window.values[:count])
        return first, Window(window.steps[-count:], window.values[-count:])
