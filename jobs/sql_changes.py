"""What clients change of a job besides its state, and its deletion."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    exists,
    insert,
    literal,
    or_,
    select,
    true,
)

from jobs.errors import IllegalTransition, JobInUse, TooMuchMetadata, VersionConflict
from jobs.schema import idempotency_keys, job_checkpoints, jobs
from jobs.schema_jobs import deleted_folders, job_labels, job_uses, label_of
from jobs.spec import MAX_METADATA, Job
from jobs.sql_base import CHANGED, SqlBase, one_row
from jobs.sql_rows import job_of
from jobs.states import LIVE, TERMINAL, Desired, Status, public_status
from jobs.store_jobs import KEY_LIFE_S, JobChange


class ChangeRows(SqlBase):
    """The part of jobs.store.Store that changes and deletes jobs, and clears what is past."""

    def change_job(self, job_id: str, change: JobChange, owner: str | None = None) -> Job:
        """See jobs.store_jobs.JobsStore."""
        with self.writing() as connection:
            seen = self.locked_for(connection, job_id, owner)
            if change.if_versions is not None and seen.version not in change.if_versions:
                raise VersionConflict(seen.version)
            values = _changed(seen, change)
            if "priority" in values and Status(seen.status) in TERMINAL:
                raise IllegalTransition(job_id, "another priority", _public(seen), LIVE)
            if "priority" in values and seen.status == Status.QUEUED:
                values["epoch"] = jobs.c.epoch + 1
            if values:
                self.change(connection, job_id, true(), values)
            if "metadata" in values:
                connection.execute(delete(job_labels).where(job_labels.c.job_id == job_id))
                write_labels(connection, job_id, seen.owner, values["metadata"] or {})
            return job_of(one_row(connection, job_id))

    def delete_job(self, job_id: str, owner: str | None = None, *, spare_pinned: bool = False) -> None:
        """See jobs.store_jobs.JobsStore. What hangs on the job goes with its row, by foreign keys."""
        saves = job_checkpoints.c
        with self.writing() as connection:
            seen = self.locked_for(connection, job_id, owner)
            if Status(seen.status) not in TERMINAL:
                raise IllegalTransition(job_id, "deletion", _public(seen), TERMINAL)
            # A job that pins one of them at this moment has its row before we look for users.
            pins = connection.execute(
                select(saves.pinned).where(saves.job_id == job_id).with_for_update()
            ).scalars()
            kept = any(list(pins)) and spare_pinned
            users = list(connection.execute(_users(literal(job_id))).scalars())
            if users or kept:
                raise JobInUse(job_id, users)
            connection.execute(insert(deleted_folders).values(path=job_id, deleted_at=self.now()))
            connection.execute(delete(jobs).where(jobs.c.id == job_id))
            connection.info[CHANGED].add(job_id)

    def expired_jobs(self, *, older_than_s: float, limit: int = 100) -> list[str]:
        """See jobs.store_jobs.JobsStore. Along the index of endings; NOT IN keeps SQLite off that of statuses."""
        columns, saves, before = jobs.c, job_checkpoints.c, self.now() - older_than_s
        expired = and_(
            columns.status.not_in(sorted(set(Status) - TERMINAL)),
            columns.finished_at < before,
            ~exists().where(saves.job_id == columns.id, saves.pinned),
            ~_users(columns.id).correlate(jobs).exists(),
        )
        query = select(columns.id).where(expired).order_by(columns.finished_at, columns.id).limit(limit)
        with self.reading() as connection:
            return list(connection.execute(query).scalars())

    def deleted_folders(self, *, limit: int = 10_000) -> list[str]:
        """See jobs.store_jobs.JobsStore."""
        columns = deleted_folders.c
        of_job = exists().where(jobs.c.id == columns.path)
        of_save = exists().where(job_checkpoints.c.path == columns.path)
        query = select(columns.path).where(~of_job, ~of_save).order_by(columns.deleted_at).limit(limit)
        with self.reading() as connection:
            return list(connection.execute(query).scalars())

    def forget_deleted(self, paths: Sequence[str], *, older_than_s: float) -> None:
        """See jobs.store_jobs.JobsStore."""
        columns = deleted_folders.c
        old = columns.deleted_at < self.now() - older_than_s
        with self.writing() as connection:
            connection.execute(delete(deleted_folders).where(columns.path.in_(paths), old))

    def forget_expired_keys(self, *, limit: int = 1000) -> int:
        """See jobs.store_jobs.JobsStore."""
        columns = idempotency_keys.c
        expired = columns.created_at < self.now() - KEY_LIFE_S
        oldest = select(columns.created_at).where(expired).order_by(columns.created_at).limit(limit)
        with self.reading() as connection:
            found = list(connection.execute(oldest).scalars())
        if not found:
            return 0
        with self.writing() as connection:
            gone = delete(idempotency_keys).where(expired, columns.created_at <= found[-1])
            return connection.execute(gone).rowcount


def write_labels(connection: Connection, job_id: str, owner: str, metadata: Mapping[str, str]) -> None:
    """What lists find the job by."""
    labels = sorted(label_of(*pair) for pair in metadata.items())
    if labels:
        rows = [{"owner": owner, "label": label, "job_id": job_id} for label in labels]
        connection.execute(insert(job_labels), rows)


def write_uses(connection: Connection, job_id: str, kind: str, resolved: Mapping[str, Any]) -> None:
    """Whose checkpoints the job needs: to begin with, or for good as the model that it trains an adapter of."""
    start = resolved.get("resume_from")
    needed = {start["job_id"]: False} if start else {}
    models = {saved["job_id"] for saved in resolved.get("checkpoints", ())}
    needed |= dict.fromkeys(models, kind == "ppo")
    if needed:
        rows = [{"used_id": used, "job_id": job_id, "for_good": good} for used, good in needed.items()]
        connection.execute(insert(job_uses), rows)


def _changed(seen: Any, change: JobChange) -> dict[str, Any]:
    """The values that differ. Raises TooMuchMetadata."""
    values: dict[str, Any] = {}
    if change.rename and change.name != seen.name:
        values["name"] = change.name
    before: dict[str, str] = seen.metadata or {}
    merged = {} if change.metadata is None else {**before, **change.metadata}
    kept = {key: value for key, value in merged.items() if value is not None}
    if len(kept) > MAX_METADATA:
        raise TooMuchMetadata(
            f"a job has at most {MAX_METADATA} pairs of metadata, this one would have {len(kept)}"
        )
    if kept != before:
        values["metadata"] = kept or None
    if change.priority is not None and change.priority != seen.priority:
        values["priority"] = change.priority
    return values


def _users(used_id: ColumnElement[str]) -> Select[str]:
    """The other jobs that need checkpoints of this one."""
    user, uses = jobs.alias("user"), job_uses.c
    needing = or_(uses.for_good, user.c.status.not_in(sorted(TERMINAL)))
    joined = select(user.c.id).join(job_uses, uses.job_id == user.c.id)
    return joined.where(uses.used_id == used_id, user.c.id != used_id, needing).order_by(user.c.id)


def _public(seen: Any) -> str:
    return public_status(Status(seen.status), Desired(seen.desired))
