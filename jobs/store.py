"""The port to the rows, as a Protocol: production binds SqlStore (jobs/sql_store.py), on SQLite or PostgreSQL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jobs.spec import (
    Checkpoint,
    Event,
    Job,
    JobFailure,
    JobSpec,
    MetricRow,
    NewEvent,
    NewShard,
    Sample,
    SampleOrder,
    Shard,
)
from jobs.states import Action, Status
from jobs.store_audit import AuditStore
from jobs.store_data import DataStore
from jobs.store_files import FileStore
from jobs.store_jobs import GENTLE, Ending, JobsStore
from jobs.store_keys import KeyStore
from jobs.store_live import LiveStore
from jobs.store_webhooks import WebhookStore
from jobs.store_workers import WorkerStore


@dataclass(frozen=True, kw_only=True)
class Created:
    """The job of a create call; `replayed` when the idempotency key had made it before."""

    job: Job
    replayed: bool


@dataclass(frozen=True, kw_only=True)
class Reaped:
    """What the reaper did to one job whose lease had run out."""

    job_id: str
    attempt: int
    status: Status


class Store(
    JobsStore,
    DataStore,
    KeyStore,
    LiveStore,
    AuditStore,
    FileStore,
    WorkerStore,
    WebhookStore,
    Protocol,
):
    """The rows: the truth about jobs. Each method is one transaction; times are the database's.

    Writes of a run name their `attempt` and raise LeaseLost if it is no longer the owner of a running job.
    """

    # -- clients ------------------------------------------------------------------------------
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
        """Insert a queued job with its first event, or return the one this owner's key made before.

        At most `queued_limit` jobs of the owner (0: any number) are queued or paused then.
        The checkpoints in `resolved["resume_from"]` and `resolved["checkpoints"]` are pinned in the same
        transaction, and the uploads in `resolved["files"]` kept until the job is done.

        Raises:
            CheckpointGone, FileGone: one of them is not there (any more).
            IdempotencyKeyReused: the key belongs to a request with another sha256.
            IdempotencyInProgress: another request holds the key and has not ended.
            JobDeleted: the job that the key made is not there any more.
            QuotaExceeded: the owner has `queued_limit` jobs that wait.
        """
        ...

    def find_replay(self, owner: str, idempotency_key: str, request_sha256: str) -> Job | None:
        """The job that this owner's key made before, or None. Raises IdempotencyKeyReused, JobDeleted."""
        ...

    def get_job(self, job_id: str, owner: str | None = None) -> Job:
        """The job. Raises JobNotFound, also when `owner` is given and is not the job's."""
        ...

    def get_version(self, job_id: str, owner: str | None = None) -> int:
        """The row's version alone: what an ETag is made of. Raises JobNotFound."""
        ...

    def request(
        self,
        job_id: str,
        action: Action,
        owner: str | None = None,
        *,
        reason: str | None = None,
        ending: Ending = GENTLE,
    ) -> Job:
        """What a client asks of a job, by the table `jobs.states.REQUESTS`; a repeat changes nothing.

        Pause: a queued job is paused at once, a running one when its owner has saved and stopped.
        Resume: a paused job is queued again with a new epoch, a pausing one runs on.
        Cancel: at once if nothing runs, else when its owner has stopped, as `ending` says.
        `reason` is kept in the row and in the event; the next request that changes something replaces it.

        Raises:
            JobNotFound: no such job.
            IllegalTransition: its state does not allow this.
        """
        ...

    def list_events(
        self,
        job_id: str,
        *,
        after: int | None = 0,
        limit: int = 100,
        levels: Sequence[str] | None = None,
        kind: str | None = None,
        newest_first: bool = False,
    ) -> list[Event]:
        """Events with seq > after, ascending; or seq < after, descending.

        `kind` is a type, or the beginning of some: `checkpoint.*`.
        """
        ...

    def list_metrics(
        self, job_id: str, *, from_step: int = 0, limit: int = 1000, every: int = 1
    ) -> list[MetricRow]:
        """Rows with step ≥ from_step, ascending; of these, the steps that `every` divides."""
        ...

    def list_samples(
        self,
        job_id: str,
        *,
        step: int | None = None,
        from_step: int = 0,
        to_step: int | None = None,
        kind: str | None = None,
        limit: int = 100,
        after: tuple[int, str, int] | None = None,
        newest_first: bool = False,
        order_by: SampleOrder = "step",
    ) -> list[Sample]:
        """Samples by (step, kind, index), ascending or descending; `after` is the last one already known.

        By `kl` or `reward` first, as the rows have them now: those without one come last either way. Behind a
        sample that is not there follows nothing.
        """
        ...

    def list_checkpoints(self, job_id: str) -> list[Checkpoint]:
        """Checkpoints by step, ascending."""
        ...

    def get_checkpoint(self, job_id: str, name: str) -> Checkpoint | None:
        """The checkpoint called `name` (`step-40`, `final`), or None."""
        ...

    def list_shards(self, job_id: str) -> list[Shard]:
        """Shards of a score job by index, ascending."""
        ...

    def list_folders(self, job_id: str) -> set[str]:
        """The paths of its checkpoints and shards: every folder that a row names."""
        ...

    # -- dispatcher and reaper ----------------------------------------------------------------
    def undispatched(self, *, resend_after_s: float, limit: int = 100, running_limit: int = 0) -> list[Job]:
        """Queued jobs never sent in their epoch, or sent over `resend_after_s` ago and still unclaimed.

        By priority, the highest first, and then by the time they have waited. Of an owner with
        `running_limit` jobs (0: any number) that run or were sent, no further ones.
        """
        ...

    def mark_dispatched(self, job_id: str, epoch: int) -> None:
        """Remember that a message for this epoch has been sent, and when."""
        ...

    def reap(self, *, limit: int = 100) -> list[Reaped]:
        """End or requeue running jobs whose lease has run out (NULL counts), by desired and crash count."""
        ...

    # -- the owner of a run -------------------------------------------------------------------
    def claim(self, job_id: str, epoch: int, *, worker: str, lease_s: float) -> Job | None:
        """queued → running by compare-and-set on (status, epoch); None if somebody else was faster."""
        ...

    def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> Job:
        """Renew the lease and read the row back (`desired`, `progress_at`). Raises LeaseLost."""
        ...

    def set_phase(self, job_id: str, attempt: int, phase: str) -> None:
        """Free text inside `running`; counts as progress. Raises LeaseLost."""
        ...

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
        """Upsert a completed step (from 1): metrics, samples, events. Raises LeaseLost."""
        ...

    def record_samples(self, job_id: str, attempt: int, samples: Sequence[Sample]) -> None:
        """Upsert samples by (step, kind, index). Raises LeaseLost."""
        ...

    def add_event(self, job_id: str, attempt: int, event: NewEvent) -> None:
        """Append an event of the run. Raises LeaseLost."""
        ...

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
        """Insert (or replace, by name) a checkpoint whose files are durable.

        A step later than any that was saved before is progress: it resets the crash count. Raises LeaseLost.
        """
        ...

    def record_shard(
        self,
        job_id: str,
        attempt: int,
        shard: NewShard,
        *,
        metrics: Mapping[str, float],
        timings: Mapping[str, float],
    ) -> None:
        """Upsert a shard whose file is durable, which is step `index` + 1, and that step's metrics.

        The job's `latest` has metrics and timings. A later shard than any before is progress: it resets the
        crash count. Raises LeaseLost.
        """
        ...

    def drop_checkpoints(
        self, job_id: str, attempt: int, names: Sequence[str], *, also_pinned: bool = True
    ) -> list[str]:
        """Forget checkpoints; returns those of `names` that are not there (any more): their folders may go.

        Raises LeaseLost.
        """
        ...

    def finish(
        self,
        job_id: str,
        attempt: int,
        status: Status,
        *,
        result: Mapping[str, object] | None = None,
        error: JobFailure | None = None,
    ) -> None:
        """running → a terminal state, with its event. Raises LeaseLost."""
        ...

    def hand_back(self, job_id: str, attempt: int, *, reason: str, crashed: bool = False) -> Status:
        """Give up a run that another worker may continue.

        → queued with epoch + 1, or by `desired` paused or cancelled; returns the new status. `crashed` counts
        against `limits.max_attempts`: at the limit the job fails with `worker_lost`. Raises LeaseLost.
        """
        ...
