"""Checkpoints that retention leaves alone because a client said so."""

from dataclasses import replace

from sqlalchemy import Connection, or_, select, update

from jobs.errors import CheckpointInUse, CheckpointNotFound
from jobs.schema import job_checkpoints, jobs
from jobs.schema_jobs import job_uses
from jobs.spec import Checkpoint
from jobs.sql_base import SqlBase
from jobs.sql_rows import checkpoint_of
from jobs.states import TERMINAL


class PinRows(SqlBase):
    """The part of jobs.store_data.DataStore that clients write."""

    def pin_checkpoint(self, checkpoint_id: str, owner: str, *, pinned: bool) -> Checkpoint:
        """See jobs.store_data.DataStore. A job is created only after it has locked the rows it pins."""
        columns = job_checkpoints.c
        chosen = (columns.id == checkpoint_id) & columns.job_id.in_(
            select(jobs.c.id).where(jobs.c.owner == owner)
        )
        with self.writing() as connection:
            row = connection.execute(select(job_checkpoints).where(chosen).with_for_update()).one_or_none()
            if row is None:
                raise CheckpointNotFound(checkpoint_id)
            if not pinned and _needed(connection, row.job_id, row.name):
                raise CheckpointInUse(checkpoint_id)
            connection.execute(
                update(job_checkpoints).where(columns.id == checkpoint_id).values(pinned=pinned)
            )
            return replace(checkpoint_of(row), pinned=pinned)


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
