"""What the owner of a run writes: every method but `claim` stands behind the fence (attempt, running)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, case, delete, func, select

from jobs.errors import LeaseLost
from jobs.private_paths import for_clients, without_folders
from jobs.schema import job_checkpoints, job_metrics, job_samples, job_shards, jobs
from jobs.spec import Checkpoint, Job, JobFailure, NewEvent, NewShard, Sample
from jobs.sql_metric_keys import MetricKeyRows
from jobs.sql_rows import checkpoint_id, checkpoint_of, finite, job_of, stored_failure, stored_sample
from jobs.states import TERMINAL, Desired, Status, status_after_release


class RunRows(MetricKeyRows):
    """The part of jobs.store.Store that belongs to a run's owner."""

    def claim(self, job_id: str, epoch: int, *, worker: str, lease_s: float) -> Job | None:
        """See jobs.store.Store."""
        waiting = (jobs.c.status == Status.QUEUED) & (jobs.c.epoch == epoch)
        values = {
            "status": Status.RUNNING,
            "desired": Desired.RUN,
            "phase": "starting",
            "attempt": jobs.c.attempt + 1,
            "worker": worker,
            "lease_until": self.now() + lease_s,
            "started_at": func.coalesce(jobs.c.started_at, self.now()),
            "progress_at": self.now(),
            "heartbeat_at": self.now(),
        }
        started = NewEvent(type="job.started", message=f"Started on {worker}.", data={"worker": worker})
        with self.writing() as connection:
            if not self.change(connection, job_id, waiting, values, [started]):
                return None
            return _job(connection, job_id)

    def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> Job:
        """See jobs.store.Store."""
        values = {"lease_until": self.now() + lease_s, "heartbeat_at": self.now()}
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, values)
            return _job(connection, job_id)

    def set_phase(self, job_id: str, attempt: int, phase: str) -> None:
        """See jobs.store.Store."""
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, {"phase": phase, "progress_at": self.now()})

    def record_step(
        self,
        job_id: str,
        attempt: int,
        *,
        step: int,
        metrics: Mapping[str, float],
        timings: Mapping[str, float],
        samples: Sequence[Sample] = (),
        events: Sequence[NewEvent] = (),
    ) -> None:
        """See jobs.store.Store."""
        values = {"step": step, "latest": finite(metrics), "progress_at": self.now()}
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, values, events)
            self._upsert_metrics(connection, job_id, attempt, step, metrics, timings)
            self._upsert_samples(connection, job_id, samples)

    def record_shard(
        self,
        job_id: str,
        attempt: int,
        shard: NewShard,
        *,
        metrics: Mapping[str, float],
        timings: Mapping[str, float],
    ) -> None:
        """See jobs.store.Store."""
        step = shard.index + 1
        values = self._saved(step) | {"step": step, "latest": finite({**metrics, **timings})}
        row = asdict(shard) | {"attempt": attempt, "created_at": self.now()}
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, values)
            connection.execute(
                self.insert(job_shards)
                .values(job_id=job_id, **row)
                .on_conflict_do_update(index_elements=["job_id", "index"], set_=row)
            )
            self._upsert_metrics(connection, job_id, attempt, step, metrics, timings)

    def _upsert_metrics(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        step: int,
        metrics: Mapping[str, float],
        timings: Mapping[str, float],
    ) -> None:
        kept, timed = finite(metrics), finite(timings)
        row = {"metrics": kept, "timings": timed, "attempt": attempt, "created_at": self.now()}
        connection.execute(
            self.insert(job_metrics)
            .values(job_id=job_id, step=step, **row)
            .on_conflict_do_update(index_elements=["job_id", "step"], set_=row)
        )
        self.remember_keys(connection, job_id, kept, timed)

    def record_samples(self, job_id: str, attempt: int, samples: Sequence[Sample]) -> None:
        """See jobs.store.Store."""
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, {"progress_at": self.now()})
            self._upsert_samples(connection, job_id, samples)

    def _upsert_samples(self, connection: Connection, job_id: str, samples: Sequence[Sample]) -> None:
        if not samples:
            return
        statement = self.insert(job_samples)
        replaced = {
            name: statement.excluded[name] for name in ("prompt", "completion", "data", "kl", "reward")
        }
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["job_id", "step", "kind", "index"], set_=replaced
            ),
            [stored_sample(job_id, sample) for sample in samples],
        )

    def add_event(self, job_id: str, attempt: int, event: NewEvent) -> None:
        """See jobs.store.Store."""
        event = replace(event, message=without_folders(event.message))
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, {}, [event])

    def record_checkpoint(
        self,
        job_id: str,
        attempt: int,
        *,
        name: str,
        step: int,
        path: str,
        sha256: str,
        size: int,
    ) -> Checkpoint:
        """See jobs.store.Store."""
        row = {
            "id": checkpoint_id(job_id, attempt, name, sha256),
            "step": step,
            "path": path,
            "sha256": sha256,
            "bytes": size,
            "attempt": attempt,
            "created_at": self.now(),
        }
        created = NewEvent(
            type="checkpoint.created", message=f"Checkpoint {name}.", data={"name": name, "step": step}
        )
        columns = job_checkpoints.c
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, self._saved(step), [created])
            connection.execute(
                self.insert(job_checkpoints)
                .values(job_id=job_id, name=name, pinned=False, **row)
                .on_conflict_do_update(index_elements=["job_id", "name"], set_=row)
            )
            stored = select(job_checkpoints).where(columns.job_id == job_id, columns.name == name)
            return checkpoint_of(connection.execute(stored).one())

    def _saved(self, step: int) -> dict[str, Any]:
        """A step that was saved before is no progress: a run that always falls back to it must end."""
        later = jobs.c.saved_step < step
        return {
            "crash_count": case((later, 0), else_=jobs.c.crash_count),
            "saved_step": case((later, step), else_=jobs.c.saved_step),
            "progress_at": self.now(),
        }

    def drop_checkpoints(
        self, job_id: str, attempt: int, names: Sequence[str], *, also_pinned: bool = True
    ) -> list[str]:
        """See jobs.store.Store."""
        columns = job_checkpoints.c
        named = (columns.job_id == job_id) & columns.name.in_(names)
        dropped = named if also_pinned else named & columns.pinned.is_(False)
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, {})
            connection.execute(delete(job_checkpoints).where(dropped))
            kept = set(connection.execute(select(columns.name).where(named)).scalars())
            return [name for name in names if name not in kept]

    def finish(
        self,
        job_id: str,
        attempt: int,
        status: Status,
        *,
        result: Mapping[str, object] | None = None,
        error: JobFailure | None = None,
    ) -> None:
        """See jobs.store.Store."""
        if status not in TERMINAL:
            raise ValueError(f"{status} is not a terminal status")
        error = None if error is None else for_clients(error)
        values = self.ended(status) | {
            "result": None if result is None else dict(result),
            "error": None if error is None else stored_failure(error),
        }
        with self.writing() as connection:
            self.change_run(connection, job_id, attempt, values, [ending_event(status, error)])

    def hand_back(self, job_id: str, attempt: int, *, reason: str, crashed: bool = False) -> Status:
        """See jobs.store.Store."""
        with self.writing() as connection:
            seen = self.locked(connection, job_id)
            if seen is None:
                raise LeaseLost(f"{job_id}: no such job")
            release = self.release(seen, reason=reason, crashed=crashed)
            self.change_run(connection, job_id, attempt, *release)
            return Status(release[0]["status"])

    def release(self, seen: Any, *, reason: str, crashed: bool) -> tuple[dict[str, Any], list[NewEvent]]:
        """The values and the event that take a running row, which the caller has locked, from its owner."""
        crash_count = seen.crash_count + crashed
        status = status_after_release(Desired(seen.desired), crash_count, seen.max_attempts)
        if status is Status.FAILED:
            error = JobFailure(
                code="worker_lost",
                detail=f"The run was lost {crash_count} times without progress in between: {reason}.",
                hint="The worker's log says why.",
                step=seen.step,
            )
            values = self.ended(status) | {"error": stored_failure(error)}
            event = ending_event(status, error)
        elif status is Status.CANCELLED:
            values, event = self.ended(status), ending_event(status)
        else:
            values = self._left(status) | {"desired": Desired.RUN}
            if status is Status.QUEUED:
                values |= {"epoch": jobs.c.epoch + 1, "queued_at": self.now()}
            event = NewEvent(
                type="job.requeued" if status is Status.QUEUED else "job.paused",
                message=f"{status.capitalize()}: {reason}.",
                level="warning" if crashed else "info",
                data={"reason": reason, "crashed": crashed},
            )
        return values | {"crash_count": crash_count}, [event]

    def ended(self, status: Status) -> dict[str, Any]:
        """The values that every terminal row has."""
        return self._left(status) | {"finished_at": self.now()}

    def _left(self, status: Status) -> dict[str, Any]:
        return {"status": status, "phase": None, "worker": None, "lease_until": None}


def ending_event(status: Status, error: JobFailure | None = None) -> NewEvent:
    """The last event of a job."""
    if error is None:
        return NewEvent(type=f"job.{status}", message=f"{status.capitalize()}.")
    return NewEvent(
        type=f"job.{status}",
        message=f"{status.capitalize()}: {error.detail}",
        level="error",
        data={"code": error.code},
    )


def _job(connection: Connection, job_id: str) -> Job:
    return job_of(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())
