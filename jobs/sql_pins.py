"""What clients say of checkpoints: that retention leaves one alone, when it is to go, that it goes now."""

from dataclasses import replace
from typing import Any, Unpack

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from jobs.errors import CheckpointInUse, CheckpointNotFound, IllegalTransition
from jobs.schema import job_checkpoints, jobs
from jobs.schema_jobs import deleted_folders, job_uses
from jobs.spec import Checkpoint
from jobs.sql_base import SqlBase
from jobs.sql_rows import checkpoint_of
from jobs.states import TERMINAL, Desired, Status, public_status
from jobs.store_data import CheckpointValues


class PinRows(SqlBase):
    """The part of jobs.store_data.DataStore that clients write."""

    def change_checkpoint(
        self, checkpoint_id: str, owner: str, **values: Unpack[CheckpointValues]
    ) -> Checkpoint:
        """See jobs.store_data.DataStore."""
        this = job_checkpoints.c.id == checkpoint_id
        with self.writing() as connection:
            row = _locked(connection, checkpoint_id, owner)
            if values.get("pinned") is False and _needed(connection, row.job_id, row.name):
                raise CheckpointInUse(checkpoint_id)
            if values:
                connection.execute(update(job_checkpoints).where(this).values(**values))
            return replace(checkpoint_of(row), **values)

    def expire_checkpoints(self, *, limit: int = 100) -> list[str]:
        """See jobs.store_data.DataStore. Who is changed between the two looks is looked at again."""
        columns, gone = job_checkpoints.c, list[str]()
        expired = and_(
            columns.expires_at <= self.now(),
            columns.pinned.is_(False),
            columns.job_id.in_(select(jobs.c.id).where(jobs.c.status.in_(sorted(TERMINAL)))),
        )
        query = select(columns.id).where(expired).order_by(columns.expires_at, columns.id).limit(limit)
        with self.reading() as connection:
            found = list(connection.execute(query).scalars())
        for checkpoint_id in found:
            with self.writing() as connection:
                this = select(job_checkpoints).where(columns.id == checkpoint_id, expired)
                row = connection.execute(this.with_for_update()).one_or_none()
                if row is not None and not _needed(connection, row.job_id, row.name):
                    self._forget_checkpoint(connection, row)
                    gone.append(checkpoint_id)
        return gone

    def delete_checkpoint(self, checkpoint_id: str, owner: str) -> None:
        """See jobs.store_data.DataStore. A job that has ended stays so: its row needs no lock."""
        with self.writing() as connection:
            row = _locked(connection, checkpoint_id, owner)
            job = connection.execute(
                select(jobs.c.status, jobs.c.desired).where(jobs.c.id == row.job_id)
            ).one()
            if Status(job.status) not in TERMINAL:
                status = public_status(Status(job.status), Desired(job.desired))
                raise IllegalTransition(row.job_id, "deletion of a checkpoint", status, TERMINAL)
            if _needed(connection, row.job_id, row.name):
                raise CheckpointInUse(checkpoint_id)
            self._forget_checkpoint(connection, row)

    def _forget_checkpoint(self, connection: Connection, row: Any) -> None:
        """The row first; its folder goes later."""
        connection.execute(delete(job_checkpoints).where(job_checkpoints.c.id == row.id))
        connection.execute(insert(deleted_folders).values(path=row.path, deleted_at=self.now()))


def _locked(connection: Connection, checkpoint_id: str, owner: str) -> Any:
    """The row of a checkpoint of this owner. A job that needs it must have this lock, too.

    Raises CheckpointNotFound.
    """
    theirs = job_checkpoints.c.job_id.in_(select(jobs.c.id).where(jobs.c.owner == owner))
    chosen = select(job_checkpoints).where(job_checkpoints.c.id == checkpoint_id, theirs)
    row = connection.execute(chosen.with_for_update()).one_or_none()
    if row is None:
        raise CheckpointNotFound(checkpoint_id)
    return row


def _needed(connection: Connection, job_id: str, name: str) -> bool:
    """True if a job that has not ended needs the checkpoint, or one that was trained on it."""
    columns = job_uses.c
    needing = or_(columns.for_good, jobs.c.status.not_in(sorted(TERMINAL)))
    users = (
        select(jobs.c.resolved)
        .join(job_uses, columns.job_id == jobs.c.id)
        .where(columns.used_id == job_id, needing)
    )
    for resolved in connection.execute(users).scalars():
        for used in (resolved.get("resume_from"), *resolved.get("checkpoints", ())):
            if used and (used["job_id"], used["name"]) == (job_id, name):
                return True
    return False
