"""SqlStore: jobs.store.Store on SQLite and PostgreSQL, one code path; and its dispatcher's and reaper's part.

Every move of a job is one compare-and-set with its event in the same transaction (sql_base.py).
"""

from sqlalchemy import ColumnElement, and_, case, or_, select, update

from jobs.schema import jobs
from jobs.settings import Settings
from jobs.spec import Job
from jobs.sql_audit import AuditRows
from jobs.sql_changes import ChangeRows
from jobs.sql_clients import ClientRows
from jobs.sql_files import FileRows
from jobs.sql_job_data import JobDataRows
from jobs.sql_keys import KeyRows
from jobs.sql_listing import ListingRows
from jobs.sql_live import LiveRows
from jobs.sql_pins import PinRows
from jobs.sql_rows import job_of
from jobs.sql_runs import RunRows
from jobs.sql_webhooks import WebhookRows
from jobs.sql_workers import WorkerRows
from jobs.states import Status
from jobs.store import Reaped, Store

MOST_RESEND_WAITS = 10


class SqlStore(
    ClientRows,
    ListingRows,
    ChangeRows,
    JobDataRows,
    PinRows,
    LiveRows,
    RunRows,
    KeyRows,
    AuditRows,
    FileRows,
    WorkerRows,
    WebhookRows,
):
    """The rows."""

    def undispatched(self, *, resend_after_s: float, limit: int = 100, running_limit: int = 0) -> list[Job]:
        """See jobs.store.Store. After n messages the next waits n · resend_after_s (n ≤ 10)."""
        waits = case((jobs.c.dispatches < MOST_RESEND_WAITS, jobs.c.dispatches), else_=MOST_RESEND_WAITS)
        unsent = jobs.c.dispatched_epoch < jobs.c.epoch
        if running_limit > 0:
            unsent = and_(unsent, self.may_be_sent(running_limit))
        unclaimed = jobs.c.dispatched_at < self.now() - waits * resend_after_s
        query = (
            select(jobs)
            .where(jobs.c.status == Status.QUEUED, or_(unsent, unclaimed))
            .order_by(jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.id)
            .limit(limit)
        )
        with self.reading() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def mark_dispatched(self, job_id: str, epoch: int) -> None:
        """See jobs.store.Store. Not visible to clients: the version stays."""
        again = jobs.c.dispatched_epoch == epoch
        with self.writing() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.status == Status.QUEUED, jobs.c.epoch == epoch)
                .values(
                    dispatched_epoch=epoch,
                    dispatched_at=self.now(),
                    dispatches=case((again, jobs.c.dispatches + 1), else_=1),
                )
            )

    def reap(self, *, limit: int = 100) -> list[Reaped]:
        """See jobs.store.Store. One transaction per job, so that none holds the write lock for long."""
        query = select(jobs.c.id, jobs.c.attempt).where(self._expired()).order_by(jobs.c.id).limit(limit)
        with self.reading() as connection:
            found = connection.execute(query).all()
        reaped = [self._reap_one(row.id, row.attempt) for row in found]
        return [item for item in reaped if item is not None]

    def _reap_one(self, job_id: str, attempt: int) -> Reaped | None:
        with self.writing() as connection:
            seen = self.locked(connection, job_id)
            if seen is None:
                return None
            values, events = self.release(seen, reason="its worker stopped renewing the lease", crashed=True)
            still = and_(jobs.c.attempt == attempt, self._expired())
            if not self.change(connection, job_id, still, values, events):
                return None
            return Reaped(job_id=job_id, attempt=attempt, status=Status(values["status"]))

    def _expired(self) -> ColumnElement[bool]:
        """NULL counts: a lease that was never written must not live for ever."""
        lapsed = or_(jobs.c.lease_until.is_(None), jobs.c.lease_until < self.now())
        return and_(jobs.c.status == Status.RUNNING, lapsed)


def open_store(settings: Settings) -> SqlStore:
    """The deployment's store."""
    return SqlStore(settings.database_url.get_secret_value())


_: type[Store] = SqlStore
