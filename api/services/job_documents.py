"""The JSON of jobs, written once for each version and sent to all who ask.

A job's document is a function of its row at one version, and of the metrics of the steps that this row counts, for
its diagnosis: a step's metrics are written in the transaction that counts it. What it says of other jobs (where a
queued one stands) no version covers; hence the document of a queued job is written anew when it is QUEUED_S old
and when this process has changed any job.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from itertools import count
from typing import NamedTuple

from anyio.to_thread import run_sync

from api.schemas_jobs import JobDocument, ResolvedJobDocument
from api.services.dry_run import resolved_config
from api.services.jobs import JobService
from jobs.spec import Job
from jobs.states import Status

MOST_BYTES = 32 << 20
QUEUED_S = 1.0


class Written(NamedTuple):
    """A document and the version of its row; of a queued job also how long it may be sent."""

    version: int
    body: bytes
    change: int | None  # of any job by this process: the last one before it was written
    until: float  # in the loop's time


_Key = tuple[str, int, int]  # a job's id, its version, and the last change of any job


class JobDocuments:
    """The newest document of each job, the least used ones forgotten. It belongs to the event loop."""

    def __init__(self, jobs: JobService, *, most_bytes: int = MOST_BYTES) -> None:
        self._jobs, self._most_bytes, self._bytes = jobs, most_bytes, 0
        self._kept: OrderedDict[str, Written] = OrderedDict()
        self._writing: dict[_Key, asyncio.Task[Written]] = {}
        self._changes = count()
        self._change = next(self._changes)

    def changed(self, _job_ids: Collection[str]) -> None:
        """This process has changed these jobs. It may be called from any thread."""
        self._change = next(self._changes)

    def at_hand(self, job_id: str, version: int) -> Written | None:
        """The job's document at this version, if it has been written."""
        kept = self._kept.get(job_id)
        if kept is None or kept.version != version:
            return None
        if kept.change is not None and (
            kept.change != self._change or kept.until < asyncio.get_running_loop().time()
        ):
            return None
        self._kept.move_to_end(job_id)
        return kept

    async def get(self, job_id: str, owner: str, version: int) -> Written:
        """The job's document at this version, or at a later one. Raises JobNotFound, StoreUnavailable."""
        kept = self.at_hand(job_id, version)
        if kept is not None:
            return kept
        key = job_id, version, self._change
        task = self._writing.get(key)
        if task is None:
            task = self._writing[key] = asyncio.create_task(self._write(key, owner))
        return await asyncio.shield(task)  # one who leaves does not end it for the others

    async def resolved(self, job_id: str, owner: str) -> Written:
        """The job's document as it is now, with its resolved config; it is rarely asked for, and not kept."""
        job, body = await run_sync(self._read_resolved, job_id, owner)
        return Written(job.version, body, None, 0.0)

    async def _write(self, key: _Key, owner: str) -> Written:
        job_id, _, change = key
        until = asyncio.get_running_loop().time() + QUEUED_S
        try:
            job, body = await run_sync(self._read, job_id, owner)
        finally:
            del self._writing[key]
        written = Written(job.version, body, change if job.status is Status.QUEUED else None, until)
        self._forget(job_id)
        self._kept[job_id] = written
        self._bytes += len(written.body)
        while self._bytes > self._most_bytes:
            self._forget(next(iter(self._kept)))
        return written

    def _forget(self, job_id: str) -> None:
        if job_id in self._kept:
            self._bytes -= len(self._kept.pop(job_id).body)

    def _read(self, job_id: str, owner: str) -> tuple[Job, bytes]:
        job = self._jobs.get(job_id, owner)
        return job, self._document(job).model_dump_json().encode()

    def _read_resolved(self, job_id: str, owner: str) -> tuple[Job, bytes]:
        job = self._jobs.get(job_id, owner)
        fields, config = vars(self._document(job)), resolved_config(job.spec, job.resolved)
        return job, ResolvedJobDocument(**fields, resolved_config=config).model_dump_json().encode()

    def _document(self, job: Job) -> JobDocument:
        return JobDocument.of(job, self._jobs.diagnosis(job), self._jobs.queue_place(job))
