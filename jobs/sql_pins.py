"""Checkpoints that retention leaves alone because a client said so."""

from dataclasses import replace

from sqlalchemy import Connection, select, update

from jobs.errors import CheckpointInUse, CheckpointNotFound
from jobs.schema import job_checkpoints, jobs
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
            if not pinned and _needed(connection, owner, row.job_id, row.name):
                raise CheckpointInUse(checkpoint_id)
            connection.execute(
                update(job_checkpoints).where(columns.id == checkpoint_id).values(pinned=pinned)
            )
            return replace(checkpoint_of(row), pinned=pinned)


def _needed(connection: Connection, owner: str, job_id: str, name: str) -> bool:
    """True while a job that is not done starts from the checkpoint, or scores with it."""
    waiting = select(jobs.c.resolved).where(jobs.c.owner == owner, jobs.c.status.not_in(TERMINAL))
    for resolved in connection.execute(waiting).scalars():
        for used in (resolved.get("resume_from"), *resolved.get("checkpoints", ())):
            if used and (used["job_id"], used["name"]) == (job_id, name):
                return True
    return False
