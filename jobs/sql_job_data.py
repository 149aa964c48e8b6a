"""What clients read of a job besides its row: events, metrics, samples, checkpoints, shards."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, literal, select, tuple_, union_all

from jobs.errors import CheckpointNotFound
from jobs.schema import job_checkpoints, job_events, job_metrics, job_samples, job_shards, jobs
from jobs.spec import Checkpoint, Event, MetricRow, Sample, SampleOrder, Shard
from jobs.sql_base import NUL
from jobs.sql_metrics import MetricSeriesRows
from jobs.sql_rows import checkpoint_of, event_of, metrics_of, sample_of, shard_of


class JobDataRows(MetricSeriesRows):
    """The part of jobs.store.Store that reads what hangs on a job."""

    def list_events(
        self,
        job_id: str,
        *,
        after: int | None = 0,
        limit: int = 100,
        levels: Sequence[str] | None = None,
        kind: str | None = None,
        newest_first: bool = False,
    ) -> list[Event]:
        """See jobs.store.Store."""
        columns = job_events.c
        query = select(job_events).where(columns.job_id == job_id)
        if after is not None:
            query = query.where(columns.seq < after if newest_first else columns.seq > after)
        if levels is not None:
            query = query.where(columns.level.in_(levels))
        if kind is not None:
            family = kind.removesuffix("*")
            named = (
                columns.type.startswith(family, autoescape=True) if family != kind else columns.type == kind
            )
            query = query.where(named)
        query = query.order_by(columns.seq.desc() if newest_first else columns.seq).limit(limit)
        with self.reading() as connection:
            return [event_of(row) for row in connection.execute(query)]

    def list_metrics(
        self, job_id: str, *, from_step: int = 0, limit: int = 1000, every: int = 1
    ) -> list[MetricRow]:
        """See jobs.store.Store."""
        query = (
            select(job_metrics)
            .where(job_metrics.c.job_id == job_id, job_metrics.c.step >= from_step)
            .order_by(job_metrics.c.step)
            .limit(limit)
        )
        if every > 1:
            query = query.where(job_metrics.c.step % every == 0)
        with self.reading() as connection:
            return [metrics_of(row) for row in connection.execute(query)]

    def list_samples(
        self,
        job_id: str,
        *,
        step: int | None = None,
        from_step: int = 0,
        to_step: int | None = None,
        kind: str | None = None,
        limit: int = 100,
        after: tuple[int, str, int] | None = None,
        newest_first: bool = False,
        order_by: SampleOrder = "step",
    ) -> list[Sample]:
        """See jobs.store.Store."""
        columns = job_samples.c
        names = (columns.step, columns.kind, columns["index"])
        place = (*_number_first(order_by, newest_first), *names)
        query = select(job_samples).where(columns.job_id == job_id, columns.step >= from_step)
        if step is not None:
            query = query.where(columns.step == step)
        if to_step is not None:
            query = query.where(columns.step <= to_step)
        if kind is not None:
            query = query.where(columns.kind == kind)
        query = query.order_by(*((part.desc() for part in place) if newest_first else place)).limit(limit)
        with self.reading() as connection:
            if after is not None:
                known = _known(connection, job_id, place, names, after)
                if known is None:
                    return []
                query = query.where(tuple_(*place) < known if newest_first else tuple_(*place) > known)
            return [sample_of(row) for row in connection.execute(query)]

    def list_checkpoints(self, job_id: str) -> list[Checkpoint]:
        """See jobs.store.Store."""
        columns = job_checkpoints.c
        query = (
            select(job_checkpoints)
            .where(columns.job_id == job_id)
            .order_by(columns.step, columns.created_at, columns.name)
        )
        with self.reading() as connection:
            return [checkpoint_of(row) for row in connection.execute(query)]

    def get_checkpoint(self, job_id: str, name: str) -> Checkpoint | None:
        """See jobs.store.Store."""
        if NUL in job_id or NUL in name:
            return None
        query = select(job_checkpoints).where(
            job_checkpoints.c.job_id == job_id, job_checkpoints.c.name == name
        )
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else checkpoint_of(row)

    def find_checkpoint(self, checkpoint_id: str, owner: str | None = None) -> Checkpoint:
        """See jobs.store_data.DataStore."""
        query = select(job_checkpoints).where(job_checkpoints.c.id == checkpoint_id)
        if owner is not None:
            theirs = select(jobs.c.id).where(jobs.c.owner == owner)
            query = query.where(job_checkpoints.c.job_id.in_(theirs))
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                raise CheckpointNotFound(checkpoint_id)
            return checkpoint_of(row)

    def list_shards(self, job_id: str) -> list[Shard]:
        """See jobs.store.Store."""
        columns = job_shards.c
        query = select(job_shards).where(columns.job_id == job_id).order_by(columns["index"])
        with self.reading() as connection:
            return [shard_of(row) for row in connection.execute(query)]

    def list_folders(self, job_id: str) -> set[str]:
        """See jobs.store.Store."""
        named = [
            select(table.c.path).where(table.c.job_id == job_id) for table in (job_checkpoints, job_shards)
        ]
        with self.reading() as connection:
            return set(connection.execute(union_all(*named)).scalars())


def _number_first(order_by: SampleOrder, newest_first: bool) -> tuple[ColumnElement[Any], ...]:
    """What samples are sorted by before their place: whether they have the number, and the number."""
    if order_by == "step":
        return ()
    number = job_samples.c[order_by]
    missing, there = (0, 1) if newest_first else (1, 0)  # those without it are last
    return (case((number.is_(None), missing), else_=there), func.coalesce(number, 0.0))


def _known(
    connection: Connection,
    job_id: str,
    place: tuple[ColumnElement[Any], ...],
    names: tuple[ColumnElement[Any], ...],
    after: tuple[int, str, int],
) -> Any:
    """The place of the sample that `after` names, or None; a number is the database's own, to the last bit."""
    if len(place) == len(names):
        return tuple_(*(literal(part) for part in after))
    this = [name == part for name, part in zip(names, after, strict=True)]
    row = connection.execute(select(*place).where(job_samples.c.job_id == job_id, *this)).one_or_none()
    return None if row is None else tuple_(*(literal(part) for part in row))
