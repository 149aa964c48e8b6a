"""A job's metrics as series: the points that matter, chosen by the database."""

from collections.abc import Sequence
from itertools import chain

from sqlalchemy import ColumnElement, Connection, and_, func, select

from jobs.errors import JobNotFound
from jobs.metric_series import Cursor, PointSeries, RunMark, SeriesAnswer, SeriesQuery
from jobs.schema import jobs
from jobs.schema_data import job_metric_keys
from jobs.series_sql import COLUMNS, Points, Steps, bucket_rows, kept_points, step_rows, wide
from jobs.sql_base import SqlBase
from jobs.states import Status

KEYS_AT_ONCE = 50  # PostgreSQL selects at most 1664 columns
STEPS_AT_ONCE = 10_000  # SQLite takes at most 32,766 parameters


class MetricSeriesRows(SqlBase):
    """The part of jobs.store_data.DataStore that reads metrics."""

    def run_mark(self, job_id: str, owner: str | None = None) -> RunMark:
        """See jobs.store_data.DataStore."""
        with self.reading() as connection:
            return _mark(connection, job_id, owner)

    def metric_keys(self, job_id: str) -> list[str]:
        """See jobs.store_data.DataStore."""
        with self.reading() as connection:
            return _keys(connection, job_id)

    def metric_series(self, job_id: str, query: SeriesQuery) -> SeriesAnswer:
        """See jobs.store_data.DataStore."""
        with self.reading() as connection:
            last_step = _mark(connection, job_id).step
            start, rewritten = _start(connection, job_id, query.after, last_step)
            last = last_step if query.to_step is None else min(query.to_step, last_step)
            within = and_(COLUMNS.job_id == job_id, COLUMNS.step.between(max(start, query.from_step), last))
            beyond = None
            if query.choose == "none":
                later = select(COLUMNS.step).where(within).order_by(COLUMNS.step)
                beyond = connection.execute(later.offset(query.most).limit(1)).scalar()
            if beyond is not None:
                within = and_(within, COLUMNS.step < beyond)
            bounds = select(func.count(), func.min(COLUMNS.step), func.max(COLUMNS.step)).where(within)
            steps = Steps(*connection.execute(bounds).one())
            keys = [key for key in _keys(connection, job_id) if query.wants(key)] if steps.number else []
            series = [
                found
                for place in range(0, len(keys), KEYS_AT_ONCE)
                for found in self._series(
                    connection, within, keys[place : place + KEYS_AT_ONCE], query, steps
                )
            ]
            series = [found for found in series if found.n]
            return SeriesAnswer(
                last_step=last_step,
                cursor=_cursor(connection, job_id, steps.last if steps.number else start - 1) or query.after,
                rewritten_from=rewritten,
                more=beyond is not None,
                series=series,
                times=_times(connection, job_id, series) if query.times else None,
            )

    def _series(
        self,
        connection: Connection,
        within: ColumnElement[bool],
        keys: Sequence[str],
        query: SeriesQuery,
        steps: Steps,
    ) -> list[PointSeries]:
        if query.choose == "none" or steps.number <= query.most:
            found = self._all(connection, within, keys)
            return [PointSeries(key, len(points), points) for key, points in found.items()]
        points = wide(within, keys, postgresql=self._postgresql)
        buckets = query.most - 2 if query.choose == "last" else (query.most - 2) // 2
        rows = connection.execute(bucket_rows(points, len(keys), steps, buckets)).mappings().all()
        series = [PointSeries(key, *kept_points(rows, i, query.choose)) for i, key in enumerate(keys)]
        rare = [one.key for one in series if len(one.points) < one.n <= query.most]
        whole = self._all(connection, within, rare, sparse=True) if rare else {}
        return [one._replace(points=whole.get(one.key, one.points)) for one in series]

    def _all(
        self,
        connection: Connection,
        within: ColumnElement[bool],
        keys: Sequence[str],
        *,
        sparse: bool = False,
    ) -> dict[str, Points]:
        points = wide(within, keys, postgresql=self._postgresql)
        found: dict[str, Points] = {key: {} for key in keys}
        for step, *values in connection.execute(step_rows(points, len(keys), sparse=sparse)):
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    found[key][step] = value
        return found

    @property
    def _postgresql(self) -> bool:
        return self.engine.dialect.name == "postgresql"


def _mark(connection: Connection, job_id: str, owner: str | None = None) -> RunMark:
    query = select(jobs.c.step, jobs.c.attempt, jobs.c.status).where(jobs.c.id == job_id)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return RunMark(row.step, row.attempt, row.status == Status.RUNNING)


def _keys(connection: Connection, job_id: str) -> list[str]:
    keys = job_metric_keys.c
    return list(
        connection.execute(select(keys.key).where(keys.job_id == job_id).order_by(keys.key)).scalars()
    )


def _times(connection: Connection, job_id: str, series: Sequence[PointSeries]) -> dict[int, float]:
    """When each step of the series was written."""
    steps = sorted(set(chain.from_iterable(one.points for one in series)))
    found: dict[int, float] = {}
    for place in range(0, len(steps), STEPS_AT_ONCE):
        some = COLUMNS.step.in_(steps[place : place + STEPS_AT_ONCE])
        query = select(COLUMNS.step, COLUMNS.created_at).where(COLUMNS.job_id == job_id, some)
        found.update((step, at) for step, at in connection.execute(query))
    return found


def _cursor(connection: Connection, job_id: str, step: int) -> Cursor | None:
    query = select(COLUMNS.attempt).where(COLUMNS.job_id == job_id, COLUMNS.step == step)
    attempt = connection.execute(query).scalar()
    return None if attempt is None else Cursor(step, attempt)


def _start(
    connection: Connection, job_id: str, after: Cursor | None, last_step: int
) -> tuple[int, int | None]:
    """The first step that the cursor's holder lacks, and from where on what it has is void, if it is.

    Of the completed steps, no attempt is younger than that of a later one: each goes on where it found a save,
    and ends with the last step it completed.
    """
    if after is None:
        return 0, None
    if after.step <= last_step and _cursor(connection, job_id, after.step) == after:
        return after.step + 1, None
    query = select(func.min(COLUMNS.step)).where(
        COLUMNS.job_id == job_id, COLUMNS.attempt > after.attempt, COLUMNS.step <= min(after.step, last_step)
    )
    rewritten = connection.execute(query).scalar()
    if rewritten is None:
        rewritten = last_step + 1 if after.step > last_step else None
    return (after.step + 1, None) if rewritten is None else (rewritten, rewritten)
