"""What clients ask of the store: create, read, list, pause, resume, cancel; and their keys."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, insert, select, update

from jobs.errors import CheckpointGone, IllegalTransition, JobDeleted, JobNotFound
from jobs.schema import job_checkpoints, jobs
from jobs.spec import Job, JobSpec, NewEvent, first_step
from jobs.sql_base import CHANGED, one_row
from jobs.sql_changes import write_labels, write_uses
from jobs.sql_files import hold_files
from jobs.sql_idempotency import IdempotencyRows, KeyUse, made_before
from jobs.sql_listing import RUNNING_NAMES
from jobs.sql_quotas import QuotaRows
from jobs.sql_rows import job_of
from jobs.states import REQUESTS, Action, Desired, Status, public_status
from jobs.store import Created
from jobs.store_jobs import GENTLE, Ending

# the moves whose event is not `job.<public status>`
EVENTS = {("paused", "queued"): "job.resumed", ("pausing", "running"): "job.pause_withdrawn"}
CREATE = "jobs_create"


class ClientRows(IdempotencyRows, QuotaRows):
    """The client's part of jobs.store.Store: jobs and their states."""

    def create_job(
        self,
        job_id: str,
        owner: str,
        spec: JobSpec,
        resolved: Mapping[str, object],
        *,
        idempotency_key: str | None = None,
        request_sha256: str | None = None,
        queued_limit: int = 0,
        trace_id: str | None = None,
    ) -> Created:
        """See jobs.store.Store."""
        use = None
        if idempotency_key is not None:
            use = KeyUse(owner, CREATE, idempotency_key, request_sha256 or "")
        with self.key_held(use), self.writing() as connection:
            if use is not None:
                before = self.claim_key(connection, use, job_id)
                if before is not None:
                    return Created(job=_made(connection, before), replayed=True)
            self.one_more_may_wait(connection, owner, queued_limit)
            _pin(connection, resolved)
            values = self._first_values(job_id, owner, spec, resolved)
            connection.execute(insert(jobs).values(**values, trace_id=trace_id))
            connection.info[CHANGED].add(job_id)
            write_labels(connection, job_id, owner, spec.metadata)
            write_uses(connection, job_id, spec.type, resolved)
            hold_files(connection, job_id, resolved)
            created = NewEvent(type="job.created", message="Queued.")
            self.write_events(connection, job_id, owner, 0, 0, [created])
            return Created(job=job_of(one_row(connection, job_id)), replayed=False)

    def _first_values(
        self, job_id: str, owner: str, spec: JobSpec, resolved: Mapping[str, object]
    ) -> dict[str, Any]:
        return {
            "id": job_id,
            "owner": owner,
            "spec": spec.model_dump_json(),
            "resolved": dict(resolved),
            "type": spec.type,
            "name": spec.name,
            "metadata": spec.metadata or None,
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
            before = made_before(connection, KeyUse(owner, CREATE, idempotency_key, request_sha256))
            return None if before is None else _made(connection, before)

    def get_job(self, job_id: str, owner: str | None = None) -> Job:
        """See jobs.store.Store."""
        with self.reading() as connection:
            return job_of(one_row(connection, job_id, owner))

    def get_version(self, job_id: str, owner: str | None = None) -> int:
        """See jobs.store.Store."""
        with self.reading() as connection:
            version: int = one_row(connection, job_id, owner, select(jobs.c.version)).version
            return version

    def request(
        self,
        job_id: str,
        action: Action,
        owner: str | None = None,
        *,
        reason: str | None = None,
        ending: Ending = GENTLE,
    ) -> Job:
        """See jobs.store.Store."""
        with self.writing() as connection:
            seen = self.locked_for(connection, job_id, owner)
            before = public_status(Status(seen.status), Desired(seen.desired))
            after = REQUESTS[action].get(before)
            if after is None:
                raise IllegalTransition(job_id, action, before, REQUESTS[action])
            if after != before:
                unchanged = (jobs.c.status == seen.status) & (jobs.c.desired == seen.desired)
                values = self._asked(after) | {"reason": reason}
                if action is Action.CANCEL:
                    values |= {"cancel_requested_at": self.now(), "cancel_saves": ending.saves}
                    values["cancel_grace_s"] = ending.grace_s
                event = _asked_event(before, after, reason, ending)
                self.change(connection, job_id, unchanged, values, [event])
            return job_of(one_row(connection, job_id))

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


def _asked_event(before: str, after: str, reason: str | None, ending: Ending) -> NewEvent:
    data: dict[str, Any] = {} if reason is None else {"reason": reason}
    if after == "cancelling" and not ending.saves:
        data["save_checkpoint"] = False
    if after == "cancelling" and ending.grace_s is not None:
        data["grace_period_s"] = ending.grace_s
    why = "" if reason is None else f" Reason: {reason}"
    return NewEvent(
        type=EVENTS.get((before, after), f"job.{after}"), message=f"Was {before}.{why}", data=data
    )


def _made(connection: Connection, job_id: str) -> Job:
    """What a key has made. Raises JobDeleted."""
    try:
        return job_of(one_row(connection, job_id))
    except JobNotFound:
        raise JobDeleted(job_id) from None


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
