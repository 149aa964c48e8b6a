"""The job's state machine: a table. Every move is one compare-and-set in the store (sql_store.py).

Stored are `status` and `desired`; `pausing` and `cancelling` are the public names of (running, desired).
"""

from enum import StrEnum


class Status(StrEnum):
    """What the row stores."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Desired(StrEnum):
    """What the owner of a running job has been asked to do."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


TERMINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})

# target -> the states it may be reached from
SOURCES: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED}),  # handed back, reaped, resumed
    Status.RUNNING: frozenset({Status.QUEUED}),  # claimed
    Status.PAUSED: frozenset({Status.QUEUED, Status.RUNNING}),
    Status.SUCCEEDED: frozenset({Status.RUNNING}),
    Status.FAILED: frozenset({Status.QUEUED, Status.RUNNING}),
    Status.CANCELLED: frozenset({Status.QUEUED, Status.RUNNING, Status.PAUSED}),
}


def public_status(status: Status, desired: Desired) -> str:
    """The name clients see: `pausing` and `cancelling` while a running job has been asked to stop."""
    if status is Status.RUNNING and desired is Desired.CANCEL:
        return "cancelling"
    if status is Status.RUNNING and desired is Desired.PAUSE:
        return "pausing"
    return status.value


def status_after_release(desired: Desired, crash_count: int, max_crashes: int) -> Status:
    """Where a run goes whose owner gave it up or was lost: first by what was asked, then by its crashes."""
    if desired is Desired.CANCEL:
        return Status.CANCELLED
    if desired is Desired.PAUSE:
        return Status.PAUSED
    return Status.FAILED if crash_count >= max_crashes else Status.QUEUED
