"""The JSON documents of what hangs on a job: events, metrics, checkpoints, samples."""

from typing import Any, Literal, Self

from api.schemas import Document, Number, Page, Timestamp
from api.services.job_data import EventPage, SamplePage
from api.services.logs import LogPage
from jobs.spec import Checkpoint


class EventDocument(Document):
    """Something that happened to a job; `seq` counts from 1 without gaps."""

    object: Literal["job.event"] = "job.event"
    job_id: str
    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any]
    attempt: int
    created_at: Timestamp


class EventList(Page):
    """Events by seq."""

    data: list[EventDocument]

    @classmethod
    def of(cls, job_id: str, page: EventPage) -> Self:
        """The document of a page."""
        cursor = str(page.events[-1].seq) if page.more else None
        data = [EventDocument(job_id=job_id, **vars(event)) for event in page.events]
        return cls(data=data, has_more=page.more, next_cursor=cursor)


class LogLineDocument(Document):
    """A line of an attempt's log, or a piece of a very long one; `offset` is its place in all that was printed."""

    object: Literal["job.log"] = "job.log"
    attempt: int
    offset: int
    text: str


class LogList(Page):
    """Lines as they were printed. Where offsets jump, the log was too long for its file and lost its middle."""

    data: list[LogLineDocument]

    @classmethod
    def of(cls, page: LogPage) -> Self:
        """The document of a page."""
        data = [LogLineDocument(**line._asdict()) for line in page.lines]
        return cls(
            data=data, has_more=page.more, next_cursor=None if page.cursor is None else str(page.cursor)
        )


class CheckpointDocument(Document):
    """A save of a job; `model` is the name to score it by, `sha256` that of its manifest."""

    object: Literal["checkpoint"] = "checkpoint"
    id: str
    job_id: str
    name: str
    model: str
    step: int
    sha256: str
    bytes: int
    pinned: bool
    expires_at: Timestamp | None
    attempt: int
    created_at: Timestamp


class CheckpointList(Page):
    """Checkpoints by step, ascending."""

    data: list[CheckpointDocument]

    @classmethod
    def of(cls, checkpoints: list[Checkpoint]) -> Self:
        """The document of all of a job's checkpoints."""
        return cls(
            data=[
                CheckpointDocument(model=f"{save.job_id}@{save.name}", **vars(save)) for save in checkpoints
            ]
        )


SampleValue = bool | Number | list[int] | list[str] | list[Number]


class SampleDocument(Document):
    """A completion: `kind` is `rollout`, or `eval` for held-out prompts.

    `data` holds its `reward`, `length` in tokens and exact `kl`; of a rollout also `k1`, whether it `ended` by
    itself, and of every token `token_ids`, `token_texts` and `token_kl` (of the first 16384 tokens of a step).
    """

    object: Literal["sample"] = "sample"
    step: int
    kind: str
    index: int
    prompt: str
    completion: str
    data: dict[str, SampleValue]


class SampleList(Page):
    """Samples by (step, kind, index), or as `order_by` says."""

    data: list[SampleDocument]

    @classmethod
    def of(cls, page: SamplePage) -> Self:
        """The document of a page."""
        data = [SampleDocument(**vars(sample)) for sample in page.samples]
        return cls(data=data, has_more=page.more, next_cursor=page.next_cursor)
