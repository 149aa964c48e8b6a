"""What clients read of a job besides its row: events, metrics, samples, checkpoints, shards."""

from collections.abc import Sequence

from sqlalchemy import literal, select, tuple_, union_all

from jobs.errors import CheckpointNotFound
from jobs.schema import job_checkpoints, job_events, job_metrics, job_samples, job_shards, jobs
from jobs.spec import Checkpoint, Event, MetricRow, Sample, Shard
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
        kind: str | None = None,
        limit: int = 100,
        after: tuple[int, str, int] | None = None,
        newest_first: bool = False,
    ) -> list[Sample]:
        """See jobs.store.Store."""
        columns = job_samples.c
        place = (columns.step, columns.kind, columns["index"])
        query = select(job_samples).where(columns.job_id == job_id)
        if step is not None:
            query = query.where(columns.step == step)
        if kind is not None:
            query = query.where(columns.kind == kind)
        if after is not None:
            known = tuple_(*(literal(part) for part in after))
            query = query.where(tuple_(*place) < known if newest_first else tuple_(*place) > known)
        query = query.order_by(*((part.desc() for part in place) if newest_first else place)).limit(limit)
        with self.reading() as connection:
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
