"""The job's state machine: tables. Every move is one compare-and-set in the store (sql_store.py).

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


class Action(StrEnum):
    """What a client may ask of a job."""

    PAUSE = "pause"
    RESUME = "resume"
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


# action -> public status before -> after. Equal: a repeat, nothing changes. Missing: the action is refused.
REQUESTS: dict[Action, dict[str, str]] = {
    Action.PAUSE: {"queued": "paused", "running": "pausing", "pausing": "pausing", "paused": "paused"},
    Action.RESUME: {"paused": "queued", "pausing": "running", "queued": "queued", "running": "running"},
    Action.CANCEL: {
        "queued": "cancelled",
        "paused": "cancelled",
        "running": "cancelling",
        "pausing": "cancelling",
        "cancelling": "cancelling",
        "cancelled": "cancelled",
    },
}


def public_status(status: Status, desired: Desired) -> str:
    """The name clients see: `pausing` and `cancelling` while a running job has been asked to stop."""
    if status is Status.RUNNING and desired is Desired.CANCEL:
        return "cancelling"
    if status is Status.RUNNING and desired is Desired.PAUSE:
        return "pausing"
    return status.value


# the public states of a job that has not ended
LIVE = frozenset(public_status(status, desired) for status in set(Status) - TERMINAL for desired in Desired)


def status_after_release(desired: Desired, crash_count: int, max_attempts: int) -> Status:
    """Where a run goes whose owner gave it up or was lost.

    A job that may not be tried again fails even if a pause was asked for: there is nothing to resume.
    """
    if desired is Desired.CANCEL:
        return Status.CANCELLED
    if crash_count >= max_attempts:
        return Status.FAILED
    return Status.PAUSED if desired is Desired.PAUSE else Status.QUEUED
