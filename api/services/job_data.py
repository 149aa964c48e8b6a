"""What hangs on a job: events, metrics, checkpoints, samples, results. Every call sees only the owner's jobs."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from api.confined import open_below
from api.downloads import Download, Part
from api.errors import NoResults
from api.services.analysis import Frontier, RunAnalysis
from api.services.job_ids import known_shape
from jobs.bulk import RESULTS
from jobs.spec import Checkpoint, Event, Job, Sample, SampleOrder
from jobs.states import Status
from jobs.store import Store


class EventFilter(NamedTuple):
    """As jobs.store.Store.list_events has it."""

    after: int | None
    levels: tuple[str, ...] | None
    kind: str | None
    newest_first: bool


class SampleFilter(NamedTuple):
    """As jobs.store.Store.list_samples has it."""

    step: int | None
    from_step: int
    to_step: int | None
    kind: str | None
    after: tuple[int, str, int] | None
    newest_first: bool
    order_by: SampleOrder = "step"


class EventPage(NamedTuple):
    """One page by seq; `more` when others follow."""

    events: list[Event]
    more: bool


class SamplePage(NamedTuple):
    """One page; `more` when others follow."""

    samples: list[Sample]
    more: bool

    @property
    def next_cursor(self) -> str | None:
        """Of the last one, where others follow."""
        last = self.samples[-1] if self.more else None
        return None if last is None else f"{last.step}.{last.kind}.{last.index}"


class JobData:
    """What hangs on the jobs of a store; files lie below `artifacts`. Every call may raise JobNotFound."""

    def __init__(self, store: Store, analysis: RunAnalysis, artifacts: Path) -> None:
        self._store, self._analysis, self._artifacts = store, analysis, artifacts

    def events(self, job_id: str, owner: str, wanted: EventFilter, *, limit: int) -> EventPage:
        """Events that the filter lets through."""
        self._check(job_id, owner)
        events = self._store.list_events(job_id, limit=limit + 1, **wanted._asdict())
        return EventPage(events[:limit], len(events) > limit)

    def frontier(self, job_id: str, owner: str) -> Frontier:
        """Reward against √KL, with Gao's law where it fits; empty for a score job."""
        return self._analysis.frontier(self._job(job_id, owner))

    def checkpoints(self, job_id: str, owner: str) -> list[Checkpoint]:
        """Saves by step."""
        self._check(job_id, owner)
        return self._store.list_checkpoints(job_id)

    def samples(
        self, job_id: str, owner: str, wanted: SampleFilter, *, limit: int, tokens: bool = True
    ) -> SamplePage:
        """Completions as the filter sorts them; without `tokens`, without what they have of each token."""
        self._check(job_id, owner)
        samples = self._store.list_samples(job_id, limit=limit + 1, **wanted._asdict())
        more = len(samples) > limit
        if not tokens:
            samples = [replace(sample, data=_without_tokens(sample.data)) for sample in samples]
        return SamplePage(samples[:limit], more)

    def results(self, job_id: str, owner: str) -> Download:
        """Of a score job. Raises NoResults for a job of another type."""
        job = self._job(job_id, owner)
        if job.spec.type != "score":
            raise NoResults("a ppo job has no results: see its checkpoints, metrics and samples")
        shards, complete = self._store.list_shards(job_id), job.status is Status.SUCCEEDED
        digests = ":".join(shard.sha256 for shard in shards)
        items = str(sum(shard.items for shard in shards))
        return Download(
            name=f"{job_id}-results.jsonl",
            media_type="application/jsonl",
            tag=f"shards:{hashlib.sha256(f'{digests} {complete}'.encode()).hexdigest()}",
            sha256=shards[0].sha256 if len(shards) == 1 else None,
            parts=[Part(shard.bytes, partial(self._opened, f"{shard.path}/{RESULTS}")) for shard in shards],
            headers={"Results-Complete": str(complete).lower(), "Results-Items": items},
        )

    def _opened(self, path: str) -> BinaryIO:
        return open_below(self._artifacts, path)

    def _job(self, job_id: str, owner: str) -> Job:
        return self._store.get_job(known_shape(job_id), owner)

    def _check(self, job_id: str, owner: str) -> None:
        """Raises JobNotFound."""
        self._store.get_version(known_shape(job_id), owner)


def _without_tokens(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if not isinstance(value, list)}
