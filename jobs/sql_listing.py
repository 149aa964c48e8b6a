"""Lists of jobs: found in an index that has all one can filter by, and only then read."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from jobs.schema import jobs
from jobs.schema_jobs import job_labels, label_of
from jobs.spec import Job
from jobs.sql_base import SqlBase
from jobs.sql_rows import job_of
from jobs.states import Desired, Status
from jobs.store_jobs import ALL, JobAt, JobFilter, QueuePlace

# the statuses a client can filter by that are stored as (running, desired)
RUNNING_NAMES = {"running": Desired.RUN, "pausing": Desired.PAUSE, "cancelling": Desired.CANCEL}


class ListingRows(SqlBase):
    """The part of jobs.store.Store that finds jobs."""

    def list_jobs(
        self,
        *,
        owner: str | None = None,
        where: JobFilter = ALL,
        after: str | None = None,
        oldest_first: bool = False,
        limit: int = 20,
    ) -> list[Job]:
        """See jobs.store_jobs.JobsStore. Raises ValueError for a status that does not exist."""
        found = _page(_matching(owner, where), after, oldest_first).limit(limit)
        with self.reading() as connection:
            ids = list(connection.execute(found).scalars())
            rows = connection.execute(_page(select(jobs), None, oldest_first).where(jobs.c.id.in_(ids)))
            return [job_of(row) for row in rows]

    def list_versions(
        self,
        *,
        owner: str | None = None,
        where: JobFilter = ALL,
        after: str | None = None,
        oldest_first: bool = False,
        limit: int = 20,
    ) -> list[JobAt]:
        """See jobs.store_jobs.JobsStore."""
        found = _page(_matching(owner, where), after, oldest_first).limit(limit)
        with self.reading() as connection:
            ids = list(connection.execute(found).scalars())
            versions = _page(select(jobs.c.id, jobs.c.version), None, oldest_first).where(jobs.c.id.in_(ids))
            return [JobAt(job_id, version) for job_id, version in connection.execute(versions)]

    def count_jobs(self, *, owner: str | None = None, where: JobFilter = ALL) -> int:
        """See jobs.store_jobs.JobsStore."""
        with self.reading() as connection:
            counted: int = connection.execute(
                select(func.count()).select_from(_matching(owner, where).subquery())
            ).scalar_one()
            return counted

    def queue_place(self, job: Job) -> QueuePlace:
        """See jobs.store_jobs.JobsStore."""
        columns = jobs.c
        sooner = or_(
            columns.queued_at < job.queued_at,
            and_(columns.queued_at == job.queued_at, columns.id < job.id),
        )
        before = or_(
            columns.priority > job.priority, and_(columns.priority == job.priority, sooner)
        )  # SqlStore.undispatched
        ahead = select(func.count()).select_from(jobs).where(columns.status == Status.QUEUED, before)
        query = select(ahead.scalar_subquery(), self.now())
        with self.reading() as connection:
            counted, now = connection.execute(query).one()
            return QueuePlace(1 + counted, now - job.queued_at, job.dispatched_epoch == job.epoch)


def _page(query: Select[Any], after: str | None, oldest_first: bool) -> Select[Any]:
    if after is not None:
        query = query.where(jobs.c.id > after if oldest_first else jobs.c.id < after)
    return query.order_by(jobs.c.id.asc() if oldest_first else jobs.c.id.desc())


def _matching(owner: str | None, where: JobFilter) -> Select[tuple[str]]:
    query: Select[tuple[str]] = select(jobs.c.id).where(*_conditions(where))
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    for key, value in where.metadata.items():
        labelled = select(job_labels.c.job_id).where(job_labels.c.label == label_of(key, value))
        if owner is not None:
            labelled = labelled.where(job_labels.c.owner == owner)
        query = query.where(jobs.c.id.in_(labelled))
    return query


def _conditions(where: JobFilter) -> Iterator[ColumnElement[bool]]:
    if where.statuses:
        yield or_(*(_has_status(name) for name in where.statuses))
    if where.type is not None:
        yield jobs.c.type == where.type
    if where.created_from is not None:
        yield jobs.c.created_at >= where.created_from
    if where.created_before is not None:
        yield jobs.c.created_at < where.created_before


def _has_status(name: str) -> ColumnElement[bool]:
    if name in RUNNING_NAMES:
        return and_(jobs.c.status == Status.RUNNING, jobs.c.desired == RUNNING_NAMES[name])
    return jobs.c.status == Status(name)
