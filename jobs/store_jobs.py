"""The part of the port to the rows (jobs/store.py) for lists of jobs, and for changing and deleting one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from jobs.spec import Job

MAX_GRACE_S = 3600.0  # that a client may give a process to save and stop
KEY_LIFE_S = 86_400.0  # an idempotency key is remembered for so long


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs a list has: those that fit all that is given."""

    statuses: Sequence[str] = ()  # public names, any of them; none: every status
    type: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_from: float | None = None  # at this moment or later
    created_before: float | None = None


ALL = JobFilter()


@dataclass(frozen=True, kw_only=True)
class JobChange:
    """What a client changes. In metadata None removes: a key, or all of them."""

    rename: bool = False
    name: str | None = None  # with `rename`; None takes the name away
    metadata: Mapping[str, str | None] | None = field(default_factory=dict)  # a merge patch (RFC 7396)
    priority: int | None = None  # as it is
    if_versions: frozenset[int] | None = None  # one of these, or nothing changes; None: whatever it is


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the process of a cancelled job is to end: with a last checkpoint, or killed at once."""

    saves: bool = True
    grace_s: float | None = None  # from the word to the kill; None: as long as the worker gives


GENTLE = Ending()


class JobAt(NamedTuple):
    """A job of a list by its version alone."""

    id: str
    version: int


class QueuePlace(NamedTuple):
    """`position` is in the dispatcher's order, and 1 is the next; `sent`: a message has gone to the workers."""

    position: int
    waited_s: float
    sent: bool


class JobsStore(Protocol):
    """Lists of jobs, and one that is changed or deleted. As all of Store: each method is one transaction."""

    def list_jobs(
        self,
        *,
        owner: str | None = None,
        where: JobFilter = ALL,
        after: str | None = None,
        oldest_first: bool = False,
        limit: int = 20,
    ) -> list[Job]:
        """By id, which is by time; `after` is an id that this page begins behind, of a job that need not be."""
        ...

    def list_versions(
        self,
        *,
        owner: str | None = None,
        where: JobFilter = ALL,
        after: str | None = None,
        oldest_first: bool = False,
        limit: int = 20,
    ) -> list[JobAt]:
        """What `list_jobs` would have, without reading the jobs."""
        ...

    def count_jobs(self, *, owner: str | None = None, where: JobFilter = ALL) -> int:
        """How many jobs a list would have."""
        ...

    def queue_place(self, job: Job) -> QueuePlace:
        """Where a queued job stands among all queued ones."""
        ...

    def change_job(self, job_id: str, change: JobChange, owner: str | None = None) -> Job:
        """Set name, metadata and priority; the version grows if that changes anything.

        A queued job with another priority gets a new epoch: the message that was sent with the old one is stale,
        and the dispatcher sends another.

        Raises:
            JobNotFound: no such job.
            VersionConflict: its version is none of `if_versions`.
            IllegalTransition: it has ended, and another priority is asked for.
            TooMuchMetadata: it would have more than MAX_METADATA pairs.
        """
        ...

    def delete_job(self, job_id: str, owner: str | None = None, *, spare_pinned: bool = False) -> None:
        """Remove a job that has ended, with all that hangs on it, and leave a note that its folder is to go.

        Raises:
            JobNotFound: no such job.
            IllegalTransition: it has not ended.
            JobInUse: others need its checkpoints; or one is pinned, and those are to be spared.
        """
        ...

    def expired_jobs(self, *, older_than_s: float, limit: int = 100) -> list[str]:
        """Ids of jobs that ended so long ago, the oldest first: none that others need or that has a pin."""
        ...

    def deleted_folders(self, *, limit: int = 10_000) -> list[str]:
        """Paths of deleted jobs and checkpoints that may still be there; none of them is one's that is there."""
        ...

    def forget_deleted(self, paths: Sequence[str], *, older_than_s: float) -> None:
        """Their folders are gone; nobody can write there any more if they were deleted so long ago."""
        ...

    def forget_expired_keys(self, *, limit: int = 1000) -> int:
        """Remove idempotency keys that have had their time (KEY_LIFE_S); returns how many."""
        ...
