"""The JSON documents of workers and of the queue."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from api.schemas import Document, Page, Timestamp
from jobs.queue import DEFAULT_QUEUE
from jobs.store_workers import STALE_AFTER_S, QueueState, SeenWorker


class WorkerDocument(Document):
    """A worker as last heard of: `stale` after three missed signs of life."""

    object: Literal["worker"] = "worker"
    id: str
    host: str
    state: Literal["busy", "idle", "stale"]
    current_job: str | None = Field(description="Only if it is the caller's.")
    queues: list[str] = Field(description="Where it listens.")
    device: str
    versions: dict[str, str]
    started_at: Timestamp
    heartbeat_at: Timestamp
    heartbeat_age_s: float

    @classmethod
    def of(cls, worker: SeenWorker, owner: str) -> Self:
        """The document of a row, for this caller."""
        return cls(
            id=worker.id,
            host=worker.host,
            state="stale" if is_stale(worker) else "busy" if worker.jobs else "idle",
            current_job=next((job_id for job_id, whose in worker.jobs if whose == owner), None),
            queues=list(worker.queues),
            device=worker.device,
            versions=worker.versions,
            started_at=worker.started_at,
            heartbeat_at=worker.heartbeat_at,
            heartbeat_age_s=round(worker.heartbeat_age_s, 3),
        )


class WorkerList(Page):
    """All workers; those that nobody has heard of for a day are not shown."""

    data: list[WorkerDocument]

    @classmethod
    def of(cls, workers: Sequence[SeenWorker], owner: str) -> Self:
        """The document of all rows."""
        return cls(data=[WorkerDocument.of(worker, owner) for worker in workers])


class PriorityCount(Document):
    """Waiting jobs of one priority."""

    priority: int
    jobs: int


class NamedQueue(Document):
    """A queue of the broker."""

    name: str
    waiting: int
    workers: int = Field(description="That listen to it and are not stale.")


class QueueDocument(Document):
    """The jobs of all callers."""

    object: Literal["queue"] = "queue"
    waiting: int
    waiting_by_priority: list[PriorityCount] = Field(description="The highest, which starts first, first.")
    running: int
    paused: int
    oldest_wait_s: float | None = Field(description="null if nothing waits.")
    queues: list[NamedQueue]

    @classmethod
    def of(cls, state: QueueState, workers: Sequence[SeenWorker]) -> Self:
        """The document. Every job goes to one queue: see docs/http/models.md."""
        waiting = sum(state.waiting.values())
        listening = [queue for worker in workers if not is_stale(worker) for queue in worker.queues]
        return cls(
            waiting=waiting,
            waiting_by_priority=[PriorityCount(priority=p, jobs=n) for p, n in state.waiting.items()],
            running=state.running,
            paused=state.paused,
            oldest_wait_s=None if state.oldest_wait_s is None else round(state.oldest_wait_s, 3),
            queues=[
                NamedQueue(
                    name=name,
                    waiting=waiting if name == DEFAULT_QUEUE else 0,
                    workers=listening.count(name),
                )
                for name in sorted({DEFAULT_QUEUE, *listening})
            ],
        )


def is_stale(worker: SeenWorker) -> bool:
    """True if it has missed three signs of life."""
    return worker.heartbeat_age_s > STALE_AFTER_S
