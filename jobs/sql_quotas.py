"""Quotas of owners: how many jobs may wait, counted at a create; how many may run, counted when one is sent."""

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from jobs.errors import QuotaExceeded
from jobs.schema import jobs
from jobs.sql_base import SqlBase
from jobs.states import Status

QUOTA_LOCK = 0x71756F74  # "quot": the first half of PostgreSQL's advisory lock, the owner is the other
WAITING = (Status.QUEUED, Status.PAUSED)  # paused ones too, or pausing would make room for ever more


class QuotaRows(SqlBase):
    """What the methods that create and send jobs ask."""

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

    def may_be_sent(self, running_limit: int) -> ColumnElement[bool]:
        """Of jobs never sent in their epoch: those for which their owner has room, the first in line first.

        A job takes room from its message on until it ends or waits again. Two dispatchers that look in the same
        moment, while a job comes in that goes before others, may send one too many.
        """
        sent = and_(jobs.c.status == Status.QUEUED, jobs.c.dispatched_epoch == jobs.c.epoch)
        in_flight = (
            select(jobs.c.owner, func.count().label("n"))
            .where(or_(jobs.c.status == Status.RUNNING, sent))
            .group_by(jobs.c.owner)
            .subquery()
        )
        in_line = func.row_number().over(
            partition_by=jobs.c.owner, order_by=(jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.id)
        )
        unsent = (
            select(jobs.c.id, jobs.c.owner, in_line.label("place"))
            .where(jobs.c.status == Status.QUEUED, jobs.c.dispatched_epoch < jobs.c.epoch)
            .subquery()
        )
        with_room = (
            select(unsent.c.id)
            .join_from(unsent, in_flight, unsent.c.owner == in_flight.c.owner, isouter=True)
            .where(unsent.c.place + func.coalesce(in_flight.c.n, 0) <= running_limit)
        )
        return jobs.c.id.in_(with_room)
