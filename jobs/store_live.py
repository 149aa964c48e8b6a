"""The part of jobs.store.Store that tells followers of jobs what is new."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

from jobs.spec import Event
from jobs.states import TERMINAL, Status


class JobVersion(NamedTuple):
    """What of a row tells whether anything is new: all four are of one moment."""

    owner: str
    version: int
    event_seq: int  # of the last event
    status: Status

    @property
    def done(self) -> bool:
        """True once the status can never change again."""
        return self.status in TERMINAL


class OwnerEvent(NamedTuple):
    """An event, and its place among all events of its job's owner."""

    position: int
    job_id: str
    event: Event


class LiveStore(Protocol):
    """Reads of many jobs at once, and word of the changes that this process made."""

    def listen(self, changed: Callable[[Collection[str]], None]) -> None:
        """Call `changed` with the ids of the jobs that a transaction of this store has changed.

        After its commit, in its thread, before the method that opened it returns. Creation counts, and deletion.
        """
        ...

    def job_versions(self, job_ids: Collection[str]) -> dict[str, JobVersion]:
        """By id; what is not in it is not there (any more)."""
        ...

    def events_after(self, after: Mapping[str, int], *, limit: int) -> list[tuple[str, Event]]:
        """Of each job the events with seq > after[job], ascending and without gaps.

        At most `limit`, so of the last job that it holds the later events may be missing, and of others all.
        """
        ...

    def event_heads(self, owners: Collection[str]) -> dict[str, int]:
        """The position of each owner's last event: all up to there are committed. 0 without an event."""
        ...

    def owner_events(self, owner: str, *, after: int, limit: int) -> list[OwnerEvent]:
        """Events of all jobs of the owner with position > after, ascending; none below the last can come later."""
        ...
