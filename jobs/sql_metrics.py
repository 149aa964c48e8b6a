"""A job's metrics as series: the points that matter, chosen by the database.

The metrics of a step are one JSON value. A point is taken out of it by its key; points are then ranked by value
within buckets of steps, so that what leaves the database is bounded, and every series keeps its extremes.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Double,
    Select,
    String,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    or_,
    select,
    true,
    type_coerce,
    values,
)
from sqlalchemy.dialects.postgresql import JSONB

from jobs.errors import JobNotFound
from jobs.metric_series import TIMINGS, Cursor, MetricPoint, RunMark, SeriesPoints, SeriesQuery
from jobs.schema import job_metrics, jobs
from jobs.schema_data import job_metric_keys
from jobs.sql_base import SqlBase
from jobs.states import Status

COLUMNS = job_metrics.c


class Steps(NamedTuple):
    """The completed steps that an answer is about."""

    number: int
    first: int
    last: int


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

    def metric_series(self, job_id: str, query: SeriesQuery) -> SeriesPoints:
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
            keys = [key for key in _keys(connection, job_id) if query.wants(key)]
            points: list[MetricPoint] = []
            if keys and steps.number:
                found = connection.execute(self._points(within, keys, query, steps))
                points = [MetricPoint(*row) for row in found]
            return SeriesPoints(
                last_step=last_step,
                cursor=_cursor(connection, job_id, steps.last if steps.number else start - 1) or query.after,
                rewritten_from=rewritten,
                more=beyond is not None,
                points=points,
            )

    def _points(
        self, within: ColumnElement[bool], keys: Sequence[str], query: SeriesQuery, steps: Steps
    ) -> Select[Any]:
        """(key, step, value, n) by key and step."""
        points = self._long_form(within, keys)
        key, step, value = points.c.key, points.c.step, points.c.value
        columns = [key, step, value, func.count().over(partition_by=key).label("n")]
        there = value.is_not(None)
        if query.choose == "none" or steps.number <= query.most:
            return select(*columns).where(there).order_by(key, step)
        ends = [end(step).over(partition_by=key) for end in (func.min, func.max)]
        ranks = _ranks(points, query, steps)
        chosen = [*(end == step for end in ends), *(rank == 1 for rank in ranks)]
        marks = [mark.label(f"chosen_{place}") for place, mark in enumerate(chosen)]
        ranked = select(*columns, *marks).where(there).subquery("ranked")
        kept = or_(ranked.c.n <= query.most, *(ranked.c[mark.name] for mark in marks))
        return (
            select(ranked.c.key, ranked.c.step, ranked.c.value, ranked.c.n)
            .where(kept)
            .order_by(ranked.c.key, ranked.c.step)
        )

    def _long_form(self, within: ColumnElement[bool], keys: Iterable[str]) -> CTE:
        """(key, step, value) of every key and step; without a number the value is NULL."""
        postgresql = self.engine.dialect.name == "postgresql"
        wanted = (
            values(column("key", String), column("place", String), column("timing", Boolean), name="wanted")
            .data([(key, *_place(key, postgresql)) for key in keys])
            .cte("wanted")
        )
        if postgresql:  # OFFSET 0: parsed once for a step, and not once for each of its keys
            parsed = [cast(part, JSONB).label(part.name) for part in (COLUMNS.metrics, COLUMNS.timings)]
            rows = select(COLUMNS.step, *parsed).where(within).offset(0).subquery("rows")
        else:
            rows = select(COLUMNS.step, COLUMNS.metrics, COLUMNS.timings).where(within).subquery("rows")
        timing, metric = (self._number(part, wanted.c.place) for part in (rows.c.timings, rows.c.metrics))
        value = case((wanted.c.timing, timing), else_=metric).label("value")
        joined = rows.join(wanted, true())
        return (
            select(wanted.c.key, rows.c.step, value)
            .select_from(joined)
            .cte("points")
            .prefix_with("MATERIALIZED")
        )

    def _number(self, document: ColumnElement[Any], place: ColumnElement[str]) -> ColumnElement[float]:
        text = type_coerce(document, Text)
        if self.engine.dialect.name == "postgresql":
            return cast(text.op("->>")(place), Double)
        return func.json_extract(text, place, type_=Double)


def _ranks(points: CTE, query: SeriesQuery, steps: Steps) -> list[Any]:
    """1 for the points to keep of a bucket: at most `most` − 2 of a series."""
    step, value = points.c.step, points.c.value
    if query.choose == "minmax":
        buckets, orders = (query.most - 2) // 2, [(value, step), (value.desc(), step)]
    else:
        buckets, orders = query.most - 2, [(step.desc(),)]
    bucket = cast(step - steps.first, BigInteger) * buckets // (steps.last - steps.first + 1)
    return [func.row_number().over(partition_by=(points.c.key, bucket), order_by=order) for order in orders]


def _place(key: str, postgresql: bool) -> tuple[str, bool]:
    """What finds the key in its JSON, and whether that is the timings."""
    name, timing = key.removeprefix(TIMINGS), key.startswith(TIMINGS)
    return (name if postgresql else f'$."{name}"'), timing


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
