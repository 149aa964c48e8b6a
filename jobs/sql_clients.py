"""What clients ask of the store: create, read, list, pause, resume, cancel; and their keys."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Select, insert, select, union_all, update

from jobs.errors import CheckpointGone, IdempotencyKeyReused, IllegalTransition, JobNotFound
from jobs.schema import (
    api_keys,
    idempotency_keys,
    job_checkpoints,
    job_events,
    job_metrics,
    job_samples,
    job_shards,
    jobs,
)
from jobs.spec import Checkpoint, Event, Job, JobSpec, MetricRow, NewEvent, Sample, Shard, first_step
from jobs.sql_base import SqlBase
from jobs.sql_rows import checkpoint_of, event_of, job_of, metrics_of, sample_of, shard_of
from jobs.states import REQUESTS, Action, Desired, Status, public_status
from jobs.store import Created

# the statuses a client can filter by that are stored as (running, desired)
RUNNING_NAMES = {"running": Desired.RUN, "pausing": Desired.PAUSE, "cancelling": Desired.CANCEL}
# the moves whose event is not `job.<public status>`
EVENTS = {("paused", "queued"): "job.resumed", ("pausing", "running"): "job.pause_withdrawn"}
NUL = "\x00"  # no id holds one, and PostgreSQL refuses to compare with it


class ClientRows(SqlBase):
    """The client's part of jobs.store.Store."""

    def create_job(
        self,
        job_id: str,
        owner: str,
        spec: JobSpec,
        resolved: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        request_sha256: str | None = None,
    ) -> Created:
        """See jobs.store.Store."""
        with self.writing() as connection:
            if idempotency_key is not None:
                first = connection.execute(
                    self.insert(idempotency_keys)
                    .values(
                        owner=owner,
                        key=idempotency_key,
                        request_sha256=request_sha256 or "",
                        job_id=job_id,
                        created_at=self.now(),
                    )
                    .on_conflict_do_nothing()
                    .execution_options(preserve_rowcount=True)
                )
                if first.rowcount == 0:
                    before = _replayed(connection, owner, idempotency_key, request_sha256 or "")
                    assert before is not None, "it is the key that was in the way"
                    return Created(job=before, replayed=True)
            _pin(connection, resolved)
            connection.execute(insert(jobs).values(**self._first_values(job_id, owner, spec, resolved)))
            self.write_events(connection, job_id, 0, 0, [NewEvent(type="job.created", message="Queued.")])
            return Created(job=job_of(_one(connection, job_id)), replayed=False)

    def _first_values(
        self, job_id: str, owner: str, spec: JobSpec, resolved: Mapping[str, object]
    ) -> dict[str, Any]:
        return {
            "id": job_id,
            "owner": owner,
            "spec": spec.model_dump_json(),
            "resolved": dict(resolved),
            "max_attempts": spec.limits.max_attempts,
            "priority": spec.priority,
            "status": Status.QUEUED,
            "desired": Desired.RUN,
            "epoch": 1,
            "attempt": 0,
            "crash_count": 0,
            "saved_step": first_step(resolved),
            "dispatched_epoch": 0,
            "dispatches": 0,
            "step": first_step(resolved),
            "latest": {},
            "version": 1,
            "event_seq": 1,
            "created_at": self.now(),
            "queued_at": self.now(),
            "updated_at": self.now(),
        }

    def find_replay(self, owner: str, idempotency_key: str, request_sha256: str) -> Job | None:
        """See jobs.store.Store."""
        with self.reading() as connection:
            return _replayed(connection, owner, idempotency_key, request_sha256)

    def get_job(self, job_id: str, owner: str | None = None) -> Job:
        """See jobs.store.Store."""
        with self.reading() as connection:
            return job_of(_one(connection, job_id, owner))

    def get_version(self, job_id: str, owner: str | None = None) -> int:
        """See jobs.store.Store."""
        with self.reading() as connection:
            version: int = _one(connection, job_id, owner, select(jobs.c.version)).version
            return version

    def list_jobs(
        self,
        *,
        owner: str | None = None,
        status: str | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> list[Job]:
        """See jobs.store.Store. Raises ValueError for a status that does not exist."""
        query = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if after is not None:
            query = query.where(jobs.c.id < after)
        if status in RUNNING_NAMES:
            query = query.where(jobs.c.status == Status.RUNNING, jobs.c.desired == RUNNING_NAMES[status])
        elif status is not None:
            query = query.where(jobs.c.status == Status(status))
        with self.reading() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def request(self, job_id: str, action: Action, owner: str | None = None) -> Job:
        """See jobs.store.Store."""
        with self.writing() as connection:
            _one(connection, job_id, owner, select(jobs.c.id))
            seen = self.locked(connection, job_id)
            before = public_status(Status(seen.status), Desired(seen.desired))
            after = REQUESTS[action].get(before)
            if after is None:
                raise IllegalTransition(job_id, action, before)
            if after != before:
                unchanged = (jobs.c.status == seen.status) & (jobs.c.desired == seen.desired)
                event = NewEvent(type=EVENTS.get((before, after), f"job.{after}"), message=f"Was {before}.")
                self.change(connection, job_id, unchanged, self._asked(after), [event])
            return job_of(_one(connection, job_id))

    def _asked(self, after: str) -> dict[str, Any]:
        """The values that make a job's public status `after`, as a client asked."""
        if after in RUNNING_NAMES:
            return {"desired": RUNNING_NAMES[after]}
        values: dict[str, Any] = {"status": Status(after)}
        if after == Status.QUEUED:
            values |= {"epoch": jobs.c.epoch + 1, "queued_at": self.now()}
        if after == Status.CANCELLED:
            values |= {"finished_at": self.now()}
        return values

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

    def create_key(self, key_id: str, secret_sha256: str, name: str) -> None:
        """See jobs.store.Store."""
        with self.writing() as connection:
            connection.execute(
                insert(api_keys).values(
                    id=key_id, secret_sha256=secret_sha256, name=name, created_at=self.now()
                )
            )

    def key_secret_sha256(self, key_id: str) -> str | None:
        """See jobs.store.Store."""
        query = select(api_keys.c.secret_sha256).where(
            api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)
        )
        with self.reading() as connection:
            return connection.execute(query).scalar_one_or_none()


def _one(
    connection: Connection, job_id: str, owner: str | None = None, query: Select[Any] | None = None
) -> Any:
    """The row of a job; JobNotFound without telling a stranger's job from none."""
    if NUL in job_id:
        raise JobNotFound(job_id)
    query = (select(jobs) if query is None else query).where(jobs.c.id == job_id)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return row


def _pin(connection: Connection, resolved: Mapping[str, Any]) -> None:
    """Keep the checkpoints that a job needs. Raises CheckpointGone."""
    columns = job_checkpoints.c
    for needed in (resolved.get("resume_from"), *resolved.get("checkpoints", ())):
        if needed is None:
            continue
        there = (columns.job_id == needed["job_id"]) & (columns.name == needed["name"])
        done = connection.execute(
            update(job_checkpoints).where(there, columns.sha256 == needed["sha256"]).values(pinned=True)
        )
        if done.rowcount == 0:
            raise CheckpointGone(f"{needed['job_id']}@{needed['name']}")


def _replayed(connection: Connection, owner: str, key: str, request_sha256: str) -> Job | None:
    """The job that this owner's key made before."""
    seen = connection.execute(
        select(idempotency_keys).where(idempotency_keys.c.owner == owner, idempotency_keys.c.key == key)
    ).one_or_none()
    if seen is None:
        return None
    if seen.request_sha256 != request_sha256:
        raise IdempotencyKeyReused(key)
    return job_of(_one(connection, seen.job_id))
