"""What a client can do with jobs: create, look, cancel. Every call sees only the owner's jobs."""

import hashlib
import json
import re
from collections.abc import Callable
from typing import NamedTuple

from api.errors import AdapterNotTrainable, InvalidCursor
from api.services.models import ModelResolver
from jobs.errors import JobNotFound
from jobs.ports import Created, Rng, Store
from jobs.spec import Checkpoint, Event, Job, JobSpec, MetricRow, Sample

JOB_ID = re.compile(r"job_[0-9a-f]{32}")


class JobPage(NamedTuple):
    """One page, newest first; `more` when older jobs follow."""

    jobs: list[Job]
    more: bool


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


class JobService:
    """The collection of jobs. `wake` tells the dispatcher that a row was committed; it cannot fail."""

    def __init__(self, store: Store, models: ModelResolver, rng: Rng, wake: Callable[[], None]) -> None:
        self._store, self._models, self._rng, self._wake = store, models, rng, wake

    def create(self, spec: JobSpec, owner: str, idempotency_key: str | None) -> Created:
        """One row, or the job that this owner's key made before.

        Raises:
            UnknownModel, AdapterNotTrainable, PathNotAllowed, FileNotFound: what it names is of no use.
            IdempotencyKeyReused: the key belongs to another request.
        """
        created = self._store.create_job(
            self._rng.job_id(),
            owner,
            spec,
            self._resolved(spec, owner),
            idempotency_key=idempotency_key,
            request_sha256=canonical_sha256(spec),
        )
        self._wake()
        return created

    def get(self, job_id: str, owner: str) -> Job:
        """The job. Raises JobNotFound, as all below."""
        return self._store.get_job(_known_shape(job_id), owner)

    def version(self, job_id: str, owner: str) -> int:
        """What the job's ETag is made of."""
        return self._store.get_version(_known_shape(job_id), owner)

    def page(self, owner: str, *, status: str | None, after: str | None, limit: int) -> JobPage:
        """Newest first, after the job `after`. Raises InvalidCursor."""
        if after is not None and not JOB_ID.fullmatch(after):
            raise InvalidCursor
        jobs = self._store.list_jobs(owner=owner, status=status, after=after, limit=limit + 1)
        return JobPage(jobs[:limit], len(jobs) > limit)

    def cancel(self, job_id: str, owner: str) -> Job:
        """Ask for the end: at once if nothing runs. Raises IllegalTransition if it has ended otherwise."""
        return self._store.request_cancel(_known_shape(job_id), owner)

    def events(self, job_id: str, owner: str, *, after: int, limit: int) -> EventPage:
        """Events with seq > after."""
        self.version(job_id, owner)
        events = self._store.list_events(job_id, after=after, limit=limit + 1)
        return EventPage(events[:limit], len(events) > limit)

    def metrics(self, job_id: str, owner: str, *, from_step: int, limit: int) -> Series:
        """Metrics of the steps from `from_step`."""
        job = self.get(job_id, owner)
        return Series(job.step, self._store.list_metrics(job_id, from_step=from_step, limit=limit))

    def checkpoints(self, job_id: str, owner: str) -> list[Checkpoint]:
        """Saves by step."""
        self.version(job_id, owner)
        return self._store.list_checkpoints(job_id)

    def samples(
        self, job_id: str, owner: str, *, step: int | None, kind: str | None, limit: int
    ) -> SamplePage:
        """Completions by (step, kind, index)."""
        self.version(job_id, owner)
        samples = self._store.list_samples(job_id, step=step, kind=kind, limit=limit + 1)
        return SamplePage(samples[:limit], len(samples) > limit)

    def _resolved(self, spec: JobSpec, owner: str) -> dict[str, object]:
        """What the worker needs besides the spec: folders and files instead of names."""
        model = self._models.resolve(spec.config.model.name, owner)
        if model.base is not None:
            raise AdapterNotTrainable("config.model.name must be a full model; this one is an adapter")
        data = spec.config.data
        return {
            "model": model.model_dump(),
            "prompts_file": data.prompts_file and self._models.resolve_file(data.prompts_file),
            "eval_prompts_file": data.eval_prompts_file and self._models.resolve_file(data.eval_prompts_file),
        }


def canonical_sha256(spec: JobSpec) -> str:
    """Of the request with its defaults filled in and its names sorted: equal requests, equal hashes."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _known_shape(job_id: str) -> str:
    """The id, if it could be one: nothing else reaches the database."""
    if not JOB_ID.fullmatch(job_id):
        raise JobNotFound(job_id)
    return job_id
