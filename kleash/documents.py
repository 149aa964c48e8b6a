"""The JSON documents of lists, jobs and scores, with the fields that people use. They are plain dictionaries."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar

T = TypeVar("T")
Document = dict[str, Any]  # one JSON object of the HTTP contract

Status = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]


class Page(TypedDict, Generic[T]):
    """A part of a list; `next_cursor` is `after` of the next part."""

    data: list[T]
    has_more: bool
    next_cursor: str | None
    total: NotRequired[int | None]


class Progress(TypedDict):
    """Completed steps, and the last step's numbers by name."""

    step: int
    total_steps: int | None
    percent: float
    eta_s: float | None
    latest: dict[str, float]


class JobError(TypedDict):
    """Why a job failed."""

    code: str
    detail: str
    hint: str | None
    step: int | None
    attempt: int
    retryable: bool
    log_tail: list[str]


class Job(TypedDict):
    """A job; in lists `config`, `diagnosis` and `queue` are left out. `resolved_config` is there on demand."""

    id: str
    type: Literal["ppo", "score"]
    name: str | None
    status: Status
    done: bool
    phase: str | None
    attempt: int
    version: int
    created_at: str
    queued_at: str
    started_at: str | None
    finished_at: str | None
    updated_at: str
    progress: Progress
    worker: Document | None
    reason: str | None
    cancel_requested_at: str | None
    error: JobError | None
    result: Document | None
    metadata: dict[str, str]
    priority: int
    resume_from: str | None
    trace_id: str | None
    limits: Document
    links: dict[str, str | None]
    diagnosis: NotRequired[list[Document] | None]
    queue: NotRequired[Document]
    config: NotRequired[Document]
    resolved_config: NotRequired[Document]


class JobFilters(TypedDict, total=False):
    """Which jobs a list has, and in which order."""

    status: Status | Sequence[Status] | None
    type: Literal["ppo", "score"] | None
    created_after: str | None
    created_before: str | None
    metadata: Mapping[str, str] | None
    order: Literal["desc", "asc"] | None
    limit: int | None


class JobChanges(TypedDict, total=False):
    """What of a job can change; a pair of metadata goes by None."""

    name: str | None
    metadata: dict[str, str | None] | None
    priority: int


class DryRun(TypedDict):
    """What a job would be."""

    valid: bool
    resolved_config: Document
    estimate: Document
    warnings: list[Any]


class Event(TypedDict):
    """Something that happened to a job."""

    job_id: str
    seq: int
    type: str
    level: str
    message: str
    data: Document
    attempt: int
    created_at: str


class Series(TypedDict):
    """One metric by step."""

    key: str
    unit: str | None
    step: list[int]
    value: list[float]
    time: list[str] | None
    n_raw: int


class Metrics(TypedDict):
    """Metrics of a job; `next_after` is `after` of the next question."""

    job_id: str
    last_step: int
    next_after: str | None
    rewritten_from: int | None
    downsampled: bool
    series: list[Series]


class Sample(TypedDict):
    """A completion of the policy in training."""

    step: int
    kind: str
    index: int
    prompt: str
    completion: str
    data: Document


class LogLine(TypedDict):
    """A line that an attempt printed; `offset` counts its bytes."""

    attempt: int
    offset: int
    text: str


class Checkpoint(TypedDict):
    """A save of a job; `model` is its name for scores."""

    id: str
    job_id: str
    name: str
    model: str
    step: int
    sha256: str
    bytes: int
    pinned: bool
    expires_at: str | None
    attempt: int
    created_at: str
    archive_url: NotRequired[str]
    files: NotRequired[list[Document] | None]


class Artifact(TypedDict):
    """Something a job has left that can be downloaded."""

    kind: str
    name: str
    bytes: int
    sha256: str | None
    url: str
    created_at: str | None


class Score(TypedDict):
    """One item of an answer; of one that could not be scored, `index` and `error` only."""

    index: int
    n_tokens: int
    n_scored: int
    sampled_from: str
    sums: dict[str, float | None]
    means: dict[str, float | None]
    adjusted_reward: float | None
    truncated: bool
    tokens: Document | None
    top: Document | None
    error: NotRequired[dict[str, str]]


class Scores(TypedDict):
    """The answer of `/v1/scores`."""

    id: str
    created_at: str
    policy: dict[str, str | None]
    reference: dict[str, str | None]
    tokenizer: Document
    numerics: Document
    encoding: Document | None
    partial: bool
    data: list[Score]
    summary: Document | None
    attribution: Document | None
    usage: dict[str, int]
