"""The JSON documents of a job."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field

from api.schemas import Document, Number, Page, Timestamp
from api.schemas_analysis import FindingDocument
from api.services.jobs import JobPage
from jobs import spec as jobs
from jobs.bulk import ScoreConfig
from jobs.failure_codes import retryable
from jobs.states import Status
from jobs.store_jobs import QueuePlace
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.diagnosis import Finding

SENT_WITHIN_S = 15.0  # after being queued, while a broker is up
STALLED_S = 600.0
PublicStatus = Literal[
    "queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"
]


class Progress(Document):
    """How far a run is: completed steps, and the metrics of the last one. A step of a score job is a shard."""

    step: int
    total_steps: int | None = Field(description="null until a score job's file has been counted.")
    percent: float
    eta_s: float | None
    latest: dict[str, Number]


class Worker(Document):
    """Who runs the job."""

    id: str
    heartbeat_at: Timestamp | None
    stalled: bool = Field(
        description=f"Alive, but without progress for {STALLED_S:g} s at its last heartbeat. The worker ends an "
        "attempt that goes on like this for KLEASH_STALL_AFTER_S."
    )

    @classmethod
    def of(cls, job: jobs.Job) -> Self | None:
        """The owner of a run."""
        if job.worker is None:
            return None
        seen, progress = job.heartbeat_at, job.progress_at
        stalled = seen is not None and progress is not None and seen - progress > STALLED_S
        return cls(id=job.worker, heartbeat_at=seen, stalled=stalled)


class JobError(Document):
    """Why a job failed."""

    code: str
    detail: str
    hint: str | None
    step: int | None
    attempt: int = Field(description="The one that ended so.")
    retryable: bool = Field(description="True if a new job with the same request may succeed.")
    log_tail: list[str]


class Queue(Document):
    """Where a queued job stands; both are null otherwise."""

    position: int | None = Field(
        description="Among all that are queued, 1 starts next. Others' moves change it without a new ETag."
    )
    reason: Literal["waiting_for_worker", "waiting_for_broker"] | None

    @classmethod
    def of(cls, place: QueuePlace | None) -> Self:
        """The document of a place."""
        if place is None:
            return cls(position=None, reason=None)
        late = not place.sent and place.waited_s > SENT_WITHIN_S
        return cls(position=place.position, reason="waiting_for_broker" if late else "waiting_for_worker")


class Links(Document):
    """Where the rest of a job is."""

    self: str
    events: str
    metrics: str
    checkpoints: str
    samples: str
    logs: str
    frontier: str | None = Field(description="Of a PPO job.")
    results: str | None = Field(description="Of a score job.")


class JobFields(Document):
    """What every document of a job has; `done` is true once its status can never change again."""

    object: Literal["job"] = "job"
    id: str
    type: Literal["ppo", "score"]
    name: str | None
    status: PublicStatus
    done: bool
    phase: str | None = Field(description="Free text while it runs.")
    attempt: int
    version: int
    created_at: Timestamp
    queued_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None
    updated_at: Timestamp
    progress: Progress
    worker: Worker | None
    reason: str | None = Field(description="Of the last pause or cancel, if it gave one; a resume clears it.")
    cancel_requested_at: Timestamp | None
    error: JobError | None
    result: dict[str, Any] | None = Field(
        description="Of a PPO job its `model`, `checkpoint_id`, `checkpoint_url`, `archive_url` and `evaluation`."
    )
    metadata: dict[str, str]
    priority: int = Field(description="0 to 9: of waiting jobs, the highest starts first.")
    resume_from: str | None = Field(description="The checkpoint it started from.")
    trace_id: str | None = Field(description="Of the `traceparent` that the request for it had.")
    limits: jobs.Limits
    links: Links

    @staticmethod
    def _values(job: jobs.Job) -> dict[str, Any]:
        here = f"/v1/jobs/{job.id}"
        return {
            "id": job.id,
            "type": job.spec.type,
            "name": job.name,
            "status": job.public_status,
            "done": job.done,
            "phase": job.phase,
            "attempt": job.attempt,
            "version": job.version,
            "created_at": job.created_at,
            "queued_at": job.queued_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
            "updated_at": job.updated_at,
            "progress": _progress(job),
            "worker": Worker.of(job),
            "reason": job.reason,
            "cancel_requested_at": job.cancel_requested_at,
            "error": _error(job),
            "result": _result(job.result),
            "metadata": job.metadata,
            "priority": job.priority,
            "resume_from": job.spec.resume_from if isinstance(job.spec, jobs.PPOSpec) else None,
            "trace_id": job.trace_id,
            "limits": job.spec.limits,
            "links": Links(
                self=here,
                events=f"{here}/events",
                metrics=f"{here}/metrics",
                checkpoints=f"{here}/checkpoints",
                samples=f"{here}/samples",
                logs=f"{here}/logs",
                frontier=f"{here}/frontier" if job.spec.type == "ppo" else None,
                results=f"{here}/results" if job.spec.type == "score" else None,
            ),
        }


class JobSummary(JobFields):
    """A job as lists show it: without its config, which may hold thousands of prompts, and its diagnosis."""

    @classmethod
    def of(cls, job: jobs.Job) -> Self:
        """The document of a row."""
        return cls(**cls._values(job))


class JobDocument(JobFields):
    """A job with its config, what its metrics warn of, and its place in the queue."""

    diagnosis: list[FindingDocument] | None = Field(
        description="Of a PPO job: the rules that its metrics break so far. docs/algorithms.md has them all."
    )
    queue: Queue
    config: PPOConfig | ScoreConfig

    @classmethod
    def of(cls, job: jobs.Job, findings: Sequence[Finding] | None, place: QueuePlace | None = None) -> Self:
        """The document of a row, its findings, and its place in the queue."""
        diagnosis = None if findings is None else [FindingDocument.of(finding) for finding in findings]
        return cls(**cls._values(job), diagnosis=diagnosis, queue=Queue.of(place), config=job.spec.config)


class ResolvedJobDocument(JobDocument):
    """As it is shown with `include=resolved_config`."""

    resolved_config: PPOConfig | ScoreConfig = Field(
        description="The config with every default, and the default pair's names where it named no models."
    )


def _progress(job: jobs.Job) -> Progress:
    """`eta_s` takes the mean time of the steps so far for those to come."""
    total = _total_steps(job)
    eta_s = None
    completed = job.step - job.first_step
    if total and job.status is Status.RUNNING and completed > 0 and job.started_at and job.progress_at:
        eta_s = round((job.progress_at - job.started_at) / completed * (total - job.step), 1)
    percent = round(100 * job.step / total, 1) if total else 0.0
    return Progress(step=job.step, total_steps=total, percent=percent, eta_s=eta_s, latest=dict(job.latest))


def _result(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """With URLs for what it names; older results also have the folder of the server, which is no client's."""
    if result is None:
        return None
    shown = {name: value for name, value in result.items() if name != "path"}
    if save := shown.get("checkpoint_id"):
        here = f"/v1/checkpoints/{save}"
        shown |= {"checkpoint_url": here, "archive_url": f"{here}/archive"}
    return shown


def _total_steps(job: jobs.Job) -> int | None:
    if isinstance(job.spec, jobs.PPOSpec):
        return job.spec.config.optimization.steps
    inline = job.spec.config.items
    items = job.latest.get("items_total") if inline is None else len(inline)
    return None if items is None else math.ceil(items / job.spec.config.checkpoint.every_items)


def _error(job: jobs.Job) -> JobError | None:
    error = job.error
    if error is None:
        return None
    return JobError(
        code=error.code,
        detail=error.detail,
        hint=error.hint,
        step=error.step,
        attempt=job.attempt,
        retryable=retryable(error.code),
        log_tail=list(error.log_tail),
    )


class JobList(Page):
    """Jobs without their configs: `links.self` of each has it."""

    data: list[JobSummary]
    total: int | None = Field(None, description="With `include=total`: how many fit the filters.")

    @classmethod
    def of(cls, page: JobPage[jobs.Job], total: int | None) -> Self:
        """The document of a page."""
        data = [JobSummary.of(job) for job in page.jobs]
        return cls(data=data, has_more=page.more, next_cursor=page.cursor, total=total)
