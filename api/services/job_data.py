"""What hangs on a job: events, metrics, checkpoints, samples, results. Every call sees only the owner's jobs."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from api.errors import NoResults
from api.services.analysis import Frontier, RunAnalysis
from api.services.job_ids import known_shape
from jobs.bulk import RESULTS
from jobs.spec import Checkpoint, Event, Job, MetricRow, Sample
from jobs.states import Status
from jobs.store import Store

READ_BYTES = 1 << 20


class EventPage(NamedTuple):
    """One page, ascending by seq; `more` when later events follow."""

    events: list[Event]
    more: bool


class Series(NamedTuple):
    """Metrics of some steps, and the last step that the job has completed."""

    last_step: int
    rows: list[MetricRow]


class SamplePage(NamedTuple):
    """The first samples that fit; `more` when the filter matches others too."""

    samples: list[Sample]
    more: bool


class Results(NamedTuple):
    """The results that a score job has so far, and whether these are all."""

    files: list[Path]
    items: int
    size: int  # in bytes
    complete: bool

    def content(self) -> Iterator[bytes]:
        """One file after the other."""
        for path in self.files:
            with path.open("rb") as file:
                while part := file.read(READ_BYTES):
                    yield part


class JobData:
    """What hangs on the jobs of a store; files lie below `artifacts`. Every call may raise JobNotFound."""

    def __init__(self, store: Store, analysis: RunAnalysis, artifacts: Path) -> None:
        self._store, self._analysis, self._artifacts = store, analysis, artifacts

    def events(self, job_id: str, owner: str, *, after: int, limit: int) -> EventPage:
        """Events with seq > after."""
        self._check(job_id, owner)
        events = self._store.list_events(job_id, after=after, limit=limit + 1)
        return EventPage(events[:limit], len(events) > limit)

    def metrics(self, job_id: str, owner: str, *, from_step: int, limit: int) -> Series:
        """Metrics of the steps from `from_step`."""
        job = self._job(job_id, owner)
        return Series(job.step, self._store.list_metrics(job_id, from_step=from_step, limit=limit))

    def frontier(self, job_id: str, owner: str) -> Frontier:
        """Reward against √KL, with Gao's law where it fits; empty for a score job."""
        return self._analysis.frontier(self._job(job_id, owner))

    def checkpoints(self, job_id: str, owner: str) -> list[Checkpoint]:
        """Saves by step."""
        self._check(job_id, owner)
        return self._store.list_checkpoints(job_id)

    def samples(
        self, job_id: str, owner: str, *, step: int | None, kind: str | None, limit: int
    ) -> SamplePage:
        """Completions by (step, kind, index)."""
        self._check(job_id, owner)
        samples = self._store.list_samples(job_id, step=step, kind=kind, limit=limit + 1)
        return SamplePage(samples[:limit], len(samples) > limit)

    def results(self, job_id: str, owner: str) -> Results:
        """Of a score job. Raises NoResults for a job of another type."""
        job = self._job(job_id, owner)
        if job.spec.type != "score":
            raise NoResults("a ppo job has no results: see its checkpoints, metrics and samples")
        shards = self._store.list_shards(job_id)
        return Results(
            files=[self._artifacts / shard.path / RESULTS for shard in shards],
            items=sum(shard.items for shard in shards),
            size=sum(shard.bytes for shard in shards),
            complete=job.status is Status.SUCCEEDED,
        )

    def _job(self, job_id: str, owner: str) -> Job:
        return self._store.get_job(known_shape(job_id), owner)

    def _check(self, job_id: str, owner: str) -> None:
        """Raises JobNotFound."""
        self._store.get_version(known_shape(job_id), owner)
