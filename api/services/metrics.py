"""A job's metrics: as series for a chart, as rows for a file."""

from collections.abc import Iterator
from typing import NamedTuple

from api.services.job_ids import known_shape
from jobs.metric_series import TIMINGS, RunMark, SeriesAnswer, SeriesQuery
from jobs.spec import MetricRow
from jobs.store import Store
from rlhf_core.metric_names import UNITS

ROWS_AT_ONCE = 500
TIMING_UNITS = {"tokens_per_s": "tokens/s", "_s": "s", "_bytes": "bytes"}  # by how the name ends


class MetricTable(NamedTuple):
    """The keys that were asked for, and the rows of every step, some hundred at a time, read as they are taken."""

    keys: list[str]
    pages: Iterator[list[tuple[MetricRow, dict[str, float]]]]  # with the values of the keys


class MetricService:
    """The metrics of a store's jobs. Every call may raise JobNotFound."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def mark(self, job_id: str, owner: str) -> RunMark:
        """What the metrics depend on: while it stays, they do."""
        return self._store.run_mark(known_shape(job_id), owner)

    def series(self, job_id: str, query: SeriesQuery) -> SeriesAnswer:
        """The points of the query. The caller has asked for the owner's `mark`."""
        return self._store.metric_series(job_id, query)

    def table(self, job_id: str, query: SeriesQuery, mark: RunMark) -> MetricTable:
        """Every completed step in the query's range."""
        last = mark.step if query.to_step is None else min(query.to_step, mark.step)
        keys = [key for key in self._store.metric_keys(job_id) if query.wants(key)]
        return MetricTable(keys, self._pages(job_id, set(keys), query.from_step, last))

    def _pages(
        self, job_id: str, keys: set[str], first: int, last: int
    ) -> Iterator[list[tuple[MetricRow, dict[str, float]]]]:
        while page := self._store.list_metrics(job_id, from_step=first, limit=ROWS_AT_ONCE):
            yield [(row, _values(row, keys)) for row in page if row.step <= last]
            first = page[-1].step + 1
            if first > last:
                return


def _values(row: MetricRow, keys: set[str]) -> dict[str, float]:
    values = row.metrics | {TIMINGS + name: value for name, value in row.timings.items()}
    return {key: value for key, value in values.items() if key in keys}


def unit(key: str) -> str | None:
    """Of a key's values, where they have one."""
    if not key.startswith(TIMINGS):
        return UNITS.get(key)
    return next((name for ending, name in TIMING_UNITS.items() if key.endswith(ending)), None)
