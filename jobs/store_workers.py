"""The port to the rows about who works, and what waits for them."""

from dataclasses import dataclass
from typing import Protocol

BEAT_S = 10.0  # between a worker's signs of life
STALE_AFTER_S = 3 * BEAT_S


@dataclass(frozen=True, kw_only=True)
class WorkerCard:
    """A worker as it presents itself."""

    id: str  # as it claims jobs
    host: str
    queues: tuple[str, ...]
    device: str  # cuda, cpu
    versions: dict[str, str]  # by package


@dataclass(frozen=True, kw_only=True)
class SeenWorker(WorkerCard):
    """A worker as last heard of, and the running jobs that it has claimed, with their owners."""

    started_at: float
    heartbeat_at: float
    heartbeat_age_s: float
    jobs: tuple[tuple[str, str], ...]  # (id, owner)


@dataclass(frozen=True, kw_only=True)
class QueueState:
    """How many jobs wait, by priority, and how many run."""

    waiting: dict[int, int]
    running: int
    paused: int
    oldest_wait_s: float | None


class WorkerStore(Protocol):
    """The part of jobs.store.Store about workers and the queue. Each method is one transaction."""

    def record_worker(self, card: WorkerCard) -> None:
        """A sign of life. Workers that nobody has heard of for a day are forgotten."""
        ...

    def forget_worker(self, worker_id: str) -> None:
        """It has ended in order."""
        ...

    def list_workers(self) -> list[SeenWorker]:
        """By id."""
        ...

    def queue_state(self) -> QueueState:
        """Over the jobs of all owners."""
        ...
