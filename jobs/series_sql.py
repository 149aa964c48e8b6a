"""The statements that take points out of the metrics of many steps. No connection here.

The metrics of a step are one JSON value; `wide` makes a column of each key. `bucket_rows` looks at buckets of
steps in two passes, the first for each key's lowest and highest value, the second for their steps. A rank by value
(a window function) would sort all points of all keys: five times slower over 100,000 steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Double,
    FromClause,
    Integer,
    Label,
    RowMapping,
    Select,
    Subquery,
    Text,
    case,
    cast,
    column,
    func,
    literal,
    or_,
    select,
    true,
    type_coerce,
)

from jobs.metric_series import TIMINGS, Choice
from jobs.schema import job_metrics

COLUMNS = job_metrics.c
LONGEST_COLUMN = 63  # PostgreSQL cuts a name that is longer
Points = dict[int, float]  # by step


class Steps(NamedTuple):
    """The completed steps that an answer is about."""

    number: int
    first: int
    last: int


def wide(within: ColumnElement[bool], keys: Sequence[str], *, postgresql: bool) -> Subquery:
    """A row of each step: `step` and `v0` … `vn`, the value of each key or NULL."""
    source: FromClause = job_metrics
    numbers: dict[str, ColumnElement[Any]] = {}
    for prefix, part in (("", COLUMNS.metrics), (TIMINGS, COLUMNS.timings)):
        names = [key.removeprefix(TIMINGS) for key in keys if key.startswith(TIMINGS) == bool(prefix)]
        if postgresql and names:  # a record is parsed once for a step, and not once for each of its keys
            of_record = [column(name, Double) for name in names if len(name) <= LONGEST_COLUMN]
            record = (
                func.json_to_record(part).table_valued(*of_record).render_derived(part.name, with_types=True)
            )
            numbers |= {prefix + name: record.c[name] for name in names if name in record.c}
            source = source.join(record, true()) if of_record else source
        for name in names:
            text = type_coerce(part, Text)
            slow = cast(text.op("->>")(literal(name)), Double)
            number = slow if postgresql else func.json_extract(text, f'$."{name}"', type_=Double)
            numbers.setdefault(prefix + name, number)
    columns = [numbers[key].label(f"v{place}") for place, key in enumerate(keys)]
    return select(COLUMNS.step, *columns).select_from(source).where(within).subquery("wide")


def step_rows(points: Subquery, number: int, *, sparse: bool) -> Select[Any]:
    """Every step with its values; `sparse`: only steps with a value of at least one key."""
    query = select(points).order_by(points.c.step)
    there = or_(*(points.c[f"v{place}"].is_not(None) for place in range(number)))
    return query.where(there) if sparse else query


def bucket_rows(points: Subquery, number: int, steps: Steps, buckets: int) -> Select[Any]:
    """A row of each bucket of steps; of key i: its `n` points, their `first` and `last` step, the `low`est and
    `high`est of their values, and the steps of these (the earliest) and the values of those.

    Names are `n0`, `first0`, `first_value0`, …
    """
    bucket = cast(points.c.step - steps.first, BigInteger) * buckets // (steps.last - steps.first + 1)
    every = select(points, cast(bucket, Integer).label("bucket")).cte("points").prefix_with("MATERIALIZED")
    values = [part for i in range(number) for part in _values(every, i)]
    spans = select(every.c.bucket, *values).group_by(every.c.bucket).cte("spans").prefix_with("MATERIALIZED")
    found = [part for i in range(number) for part in _places(every, spans, i)]
    joined = every.join(spans, every.c.bucket == spans.c.bucket)
    ends = select(every.c.bucket, *found).select_from(joined).group_by(every.c.bucket).cte("ends")
    columns = [*spans.c, *(ends.c[part.name] for part in found)]
    return select(*columns).join_from(spans, ends, spans.c.bucket == ends.c.bucket).order_by(spans.c.bucket)


def _values(every: CTE, i: int) -> list[Label[Any]]:
    """Of key i in a bucket: what one look at its points can tell."""
    value = every.c[f"v{i}"]
    step = case((value.is_not(None), every.c.step))
    return [
        func.count(value).label(f"n{i}"),
        func.min(value).label(f"low_value{i}"),
        func.max(value).label(f"high_value{i}"),
        func.min(step).label(f"first{i}"),
        func.max(step).label(f"last{i}"),
    ]


def _places(every: CTE, spans: CTE, i: int) -> list[Label[Any]]:
    """Of key i in a bucket: where its extremes are, and the values at its ends."""
    step, value = every.c.step, every.c[f"v{i}"]
    return [
        func.min(case((value == spans.c[f"low_value{i}"], step))).label(f"low{i}"),
        func.min(case((value == spans.c[f"high_value{i}"], step))).label(f"high{i}"),
        func.max(case((step == spans.c[f"first{i}"], value))).label(f"first_value{i}"),
        func.max(case((step == spans.c[f"last{i}"], value))).label(f"last_value{i}"),
    ]


def kept_points(rows: Sequence[RowMapping], i: int, choose: Choice) -> tuple[int, Points]:
    """How many points key i has, and those to keep of them, from its rows of `bucket_rows`."""
    filled = [row for row in rows if row[f"n{i}"]]
    chosen = [("first", row) for row in filled[:1]] + [("last", row) for row in filled[-1:]]
    for name in ("low", "high") if choose == "minmax" else ("last",):
        chosen += [(name, row) for row in filled]
    kept = {row[f"{name}{i}"]: row[f"{name}_value{i}"] for name, row in chosen}
    return sum(row[f"n{i}"] for row in filled), dict(sorted(kept.items()))
