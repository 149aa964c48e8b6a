"""Quotas, counted in the transaction that makes the thing, so that no two of them can overshoot together."""

from sqlalchemy import Connection, func, select

from jobs.errors import QuotaExceeded
from jobs.schema import jobs
from jobs.sql_base import SqlBase
from jobs.states import Status

QUOTA_LOCK = 0x71756F74  # "quot": the first half of PostgreSQL's advisory lock, the owner is the other
WAITING = (Status.QUEUED, Status.PAUSED)  # paused ones too, or pausing would make room for ever more


class QuotaRows(SqlBase):
    """What a creating method asks before it inserts."""

    def one_more_may_wait(self, connection: Connection, owner: str, queued_limit: int) -> None:
        """Hold the owner's other creates until this transaction ends, and count. 0: any number.

        Raises QuotaExceeded.
        """
        if queued_limit == 0:
            return
        if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
            lock = func.pg_advisory_xact_lock(QUOTA_LOCK, func.hashtext(owner))
            connection.execute(select(lock))
        waiting = (
            select(func.count()).select_from(jobs).where(jobs.c.owner == owner, jobs.c.status.in_(WAITING))
        )
        if connection.execute(waiting).scalar_one() >= queued_limit:
            raise QuotaExceeded("queued or paused jobs", queued_limit)
