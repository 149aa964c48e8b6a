"""What clients read of a job besides its row: events, metrics, samples, checkpoints, shards."""

from sqlalchemy import select, union_all

from jobs.schema import job_checkpoints, job_events, job_metrics, job_samples, job_shards
from jobs.spec import Checkpoint, Event, MetricRow, Sample, Shard
from jobs.sql_base import NUL, SqlBase
from jobs.sql_rows import checkpoint_of, event_of, metrics_of, sample_of, shard_of


class JobDataRows(SqlBase):
    """The part of jobs.store.Store that reads what hangs on a job."""

    def list_events(self, job_id: str, *, after: int = 0, limit: int = 100) -> list[Event]:
        """See jobs.store.Store."""
        query = (
            select(job_events)
            .where(job_events.c.job_id == job_id, job_events.c.seq > after)
            .order_by(job_events.c.seq)
            .limit(limit)
        )
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
        self, job_id: str, *, step: int | None = None, kind: str | None = None, limit: int = 100
    ) -> list[Sample]:
        """See jobs.store.Store."""
        columns = job_samples.c
        query = select(job_samples).where(columns.job_id == job_id)
        if step is not None:
            query = query.where(columns.step == step)
        if kind is not None:
            query = query.where(columns.kind == kind)
        query = query.order_by(columns.step, columns.kind, columns["index"]).limit(limit)
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
