"""Lists of jobs: found in an index that has all one can filter by, and only then read."""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, FromClause, Select, and_, exists, func, or_, select, union_all

from jobs.schema import jobs
from jobs.schema_jobs import job_labels, label_of
from jobs.spec import Job
from jobs.sql_base import SqlBase
from jobs.sql_rows import job_of
from jobs.states import TERMINAL, Desired, Status
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
        found = _page(owner, where, after, oldest_first, limit)
        with self.reading() as connection:
            ids = list(connection.execute(found).scalars())
            rows = connection.execute(
                select(jobs).where(jobs.c.id.in_(ids)).order_by(_by_time(jobs.c.id, oldest_first))
            )
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
        found = _page(owner, where, after, oldest_first, limit)
        with self.reading() as connection:
            ids = list(connection.execute(found).scalars())
            versions = select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(ids))
            rows = connection.execute(versions.order_by(_by_time(jobs.c.id, oldest_first)))
            return [JobAt(job_id, version) for job_id, version in rows]

    def count_jobs(self, *, owner: str | None = None, where: JobFilter = ALL) -> int:
        """See jobs.store_jobs.JobsStore."""
        with self.reading() as connection:
            counted: int = connection.execute(
                select(func.count()).select_from(union_all(*_matching(owner, where)).subquery())
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


def _page(
    owner: str | None, where: JobFilter, after: str | None, oldest_first: bool, limit: int
) -> Select[tuple[str]]:
    """The page's ids. Of each status it takes no more than fit on the page."""
    some = []
    for query in _matching(owner, where):
        at = query.selected_columns[0]
        if after is not None:
            query = query.where(at > after if oldest_first else at < after)
        some.append(query.order_by(_by_time(at, oldest_first)).limit(limit))
    if len(some) == 1:
        return some[0]
    found = union_all(*(select(query.subquery()) for query in some)).subquery()
    return select(found.c[0]).order_by(_by_time(found.c[0], oldest_first)).limit(limit)


def _by_time(job_id: ColumnElement[str], oldest_first: bool) -> ColumnElement[str]:
    return job_id.asc() if oldest_first else job_id.desc()


def _matching(owner: str | None, where: JobFilter) -> list[Select[tuple[str]]]:
    """The jobs' ids: a query for each status, so that each runs along an index, and none has another's jobs."""
    names: list[str | None] = [*dict.fromkeys(where.statuses)]
    return [_in_status(owner, where, name) for name in names or [None]]


def _in_status(owner: str | None, where: JobFilter, name: str | None) -> Select[tuple[str]]:
    """Along the jobs of the status where these are few (live ones), else along those of a label, if given."""
    labels = [label_of(*pair) for pair in where.metadata.items()]
    if labels and (name is None or name in TERMINAL):
        query = select(job_labels.c.job_id).where(_labelled(job_labels, owner, labels.pop()))
    else:
        query = select(jobs.c.id)
    query = query.where(*_conditions(where), *([] if name is None else [_has_status(name)]))
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    besides = job_labels.alias("besides")
    for label in labels:
        query = query.where(exists().where(_labelled(besides, owner, label)))
    return query


def _labelled(labels: FromClause, owner: str | None, label: str) -> ColumnElement[bool]:
    """The row says that the job has the label."""
    of_job = and_(labels.c.job_id == jobs.c.id, labels.c.label == label)
    return of_job if owner is None else and_(of_job, labels.c.owner == owner)


def _conditions(where: JobFilter) -> Iterator[ColumnElement[bool]]:
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
