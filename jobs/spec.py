"""What a job is: the request as it is stored, and the frozen values that the store hands out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from jobs.bulk import ScoreConfig
from jobs.states import TERMINAL, Desired, Status, public_status
from rlhf_core.config.base import Config
from rlhf_core.config.ppo import PPOConfig

DEFAULT_PRIORITY, MAX_PRIORITY = 5, 9
MAX_METADATA = 16  # pairs of a job
CHECKPOINT_NAME = r"(job_[0-9a-f]{32})@([a-z0-9][a-z0-9-]{0,63})"


class Limits(Config):
    """Bounds of one job."""

    max_runtime_s: float | None = Field(None, gt=0, description="Of one attempt, in seconds.")
    max_attempts: int = Field(
        3, ge=1, le=100, description="Crashed attempts in a row; a checkpoint of a later step forgives them."
    )


Name = Annotated[str, Field(min_length=1, max_length=200)]
Reason = Annotated[str, Field(min_length=1, max_length=200)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Priority = Annotated[
    int, Field(ge=0, le=MAX_PRIORITY, description="Of waiting jobs, the highest starts first.")
]


class AnySpec(Config):
    """What every type of job has; stored as JSON in the row and never changed."""

    name: Name | None = None
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=MAX_METADATA)
    priority: Priority = DEFAULT_PRIORITY
    limits: Limits = Limits()


class PPOSpec(AnySpec):
    """A training run as a client asks for it."""

    type: Literal["ppo"] = "ppo"
    config: PPOConfig
    resume_from: str | None = Field(
        None,
        max_length=128,
        pattern=f"^{CHECKPOINT_NAME}$",
        description="A checkpoint `job_…@step-40` of the same model and LoRA; steps go on from there. "
        "β goes on from its value there if `config.kl` is the same, else it starts as configured. The evaluation "
        "before training is made again, with the reference, if prompts, rewards, rollouts or seed are others.",
    )


class ScoreSpec(AnySpec):
    """Many texts to score as a client asks for it. Its steps are shards of results."""

    type: Literal["score"]
    config: ScoreConfig


def _type(value: Any) -> str | None:
    """A job is ppo unless it says otherwise."""
    named = value.get("type", "ppo") if isinstance(value, dict) else getattr(value, "type", "ppo")
    return named if named in ("ppo", "score") else None


JobSpec = Annotated[
    Annotated[PPOSpec, Tag("ppo")] | Annotated[ScoreSpec, Tag("score")],
    Discriminator(
        _type, custom_error_type="job_type", custom_error_message="type must be one of 'ppo', 'score'"
    ),
]
JOB_SPEC: TypeAdapter[PPOSpec | ScoreSpec] = TypeAdapter(JobSpec)


@dataclass(frozen=True, kw_only=True)
class JobFailure:
    """Why a job failed: `code` is stable, the rest is for people."""

    code: str
    detail: str
    hint: str | None = None
    step: int | None = None
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row. Times are seconds since the epoch by the database's clock."""

    id: str
    owner: str  # id of the API key that created it
    spec: JobSpec  # as it was asked for: name, metadata and priority are below
    name: str | None
    metadata: dict[str, str]
    priority: int
    resolved: dict[str, Any]  # what the API resolved: model paths, file paths, the checkpoint to start from
    trace_id: str | None  # of the request that made it
    status: Status
    desired: Desired
    phase: str | None
    epoch: int  # grows with every (re)queueing; a message of another epoch is stale
    attempt: int  # the fence: grows with every claim
    crash_count: int
    dispatched_epoch: int
    lease_until: float | None
    worker: str | None
    step: int  # steps completed; of a score job: shards
    latest: dict[str, float]  # the last step's metrics
    result: dict[str, Any] | None
    error: JobFailure | None
    reason: str | None  # of the last pause or cancel, in the client's words; a resume clears it
    cancel_requested_at: float | None
    cancel_saves: bool  # its process may save before it ends
    cancel_grace_s: float | None  # between SIGTERM and SIGKILL; None: as long as the worker gives
    version: int
    created_at: float
    queued_at: float
    started_at: float | None
    progress_at: float | None
    heartbeat_at: float | None
    finished_at: float | None
    updated_at: float

    @property
    def public_status(self) -> str:
        """The status a client sees."""
        return public_status(self.status, self.desired)

    @property
    def ppo(self) -> PPOConfig:
        """The config of a job of type ppo."""
        assert isinstance(self.spec, PPOSpec)
        return self.spec.config

    @property
    def score(self) -> ScoreConfig:
        """The config of a job of type score."""
        assert isinstance(self.spec, ScoreSpec)
        return self.spec.config

    @property
    def first_step(self) -> int:
        """The step it starts from: 0, or that of the checkpoint it resumes from."""
        return first_step(self.resolved)

    @property
    def done(self) -> bool:
        """True once the status can never change again."""
        return self.status in TERMINAL


def first_step(resolved: Mapping[str, Any]) -> int:
    """The step of `resolved["resume_from"]`; 0 without one.

    That is {"path", "sha256", "step", "job_id", "name", "same_kl", "same_evaluation"}. `same_kl` is true if both
    jobs' `config.kl` are equal, so that β's controller goes on too; `same_evaluation`, if rewards, rollouts and
    seed are, so that the evaluation before training holds for both.
    """
    start = resolved.get("resume_from")
    return int(start["step"]) if start else 0


@dataclass(frozen=True, kw_only=True)
class NewEvent:
    """An event as its author writes it; the store numbers it."""

    type: str
    message: str
    level: str = "info"
    data: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """An event as stored: `seq` counts from 1 per job, without gaps."""

    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any]
    attempt: int
    created_at: float


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """One step's metrics. `timings` are apart, because only `metrics` are reproducible to the bit."""

    step: int
    metrics: dict[str, float]
    timings: dict[str, float]
    attempt: int
    created_at: float


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified save: `name` is `step-40` or `final`, `path` its folder, relative to the artifacts root."""

    id: str
    job_id: str
    name: str
    step: int
    path: str
    sha256: str  # of the manifest
    bytes: int
    pinned: bool  # another job was created to go on from it: retention leaves it alone
    expires_at: float | None  # it goes then, if it is not pinned and its job has ended
    attempt: int
    created_at: float


SampleOrder = Literal["step", "kl", "reward"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One completion: of the rollouts (`kind` = "rollout") or of the held-out prompts ("eval")."""

    step: int
    kind: str
    index: int
    prompt: str
    completion: str
    data: dict[str, Any]  # numbers (reward, kl, k1, length, …), flags (ended), a list of each (token_kl, …)


@dataclass(frozen=True, kw_only=True)
class NewShard:
    """Results of consecutive items of a score job, as the run that made them durable knows them.

    Shard 0 has the first items. `path` is as in Checkpoint. `cursor` says where the next shard begins
    (worker/bulk_input.py) and what was counted so far.
    """

    index: int
    items: int
    path: str
    sha256: str  # of the file with the results
    bytes: int
    cursor: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shard(NewShard):
    """A shard as stored."""

    attempt: int
    created_at: float
