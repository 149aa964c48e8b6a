"""Rows to the frozen values of jobs.spec, and back. No connection here."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from jobs.spec import JOB_SPEC, Checkpoint, Event, Job, JobFailure, MetricRow, Sample, Shard
from jobs.states import Desired, Status

PARSED = {"spec", "metadata", "status", "desired", "error"}
AS_STORED = [field.name for field in fields(Job) if field.name not in PARSED]


def job_of(row: Any) -> Job:
    """A row of `jobs`."""
    return Job(
        **{name: getattr(row, name) for name in AS_STORED},
        spec=JOB_SPEC.validate_json(row.spec),
        metadata=row.metadata or {},
        status=Status(row.status),
        desired=Desired(row.desired),
        error=None if row.error is None else failure_of(row.error),
    )


def failure_of(stored: Mapping[str, Any]) -> JobFailure:
    """The inverse of `stored_failure`."""
    return JobFailure(**{**stored, "log_tail": tuple(stored["log_tail"])})


def stored_failure(failure: JobFailure) -> dict[str, Any]:
    """A failure as JSON."""
    return asdict(failure)


def event_of(row: Any) -> Event:
    """A row of `job_events`."""
    return Event(
        seq=row.seq,
        type=row.type,
        level=row.level,
        message=row.message,
        data=row.data,
        attempt=row.attempt,
        created_at=row.created_at,
    )


def metrics_of(row: Any) -> MetricRow:
    """A row of `job_metrics`."""
    return MetricRow(
        step=row.step,
        metrics=row.metrics,
        timings=row.timings,
        attempt=row.attempt,
        created_at=row.created_at,
    )


def sample_of(row: Any) -> Sample:
    """A row of `job_samples`."""
    return Sample(
        step=row.step,
        kind=row.kind,
        index=row._mapping["index"],  # a row is a tuple: `row.index` is tuple.index
        prompt=row.prompt,
        completion=row.completion,
        data=row.data,
    )


def stored_sample(job_id: str, sample: Sample) -> dict[str, Any]:
    """A sample as the values of a row."""
    data = {name: x for name, x in sample.data.items() if isinstance(x, list) or math.isfinite(x)}
    numbers = {name: data.get(name) for name in ("kl", "reward")}
    return {"job_id": job_id, **vars(sample), "data": data, **numbers}


def checkpoint_of(row: Any) -> Checkpoint:
    """A row of `job_checkpoints`."""
    return Checkpoint(
        id=row.id,
        job_id=row.job_id,
        name=row.name,
        step=row.step,
        path=row.path,
        sha256=row.sha256,
        bytes=row.bytes,
        pinned=row.pinned,
        expires_at=row.expires_at,
        attempt=row.attempt,
        created_at=row.created_at,
    )


def shard_of(row: Any) -> Shard:
    """A row of `job_shards`."""
    return Shard(
        index=row._mapping["index"],  # as in sample_of
        items=row.items,
        path=row.path,
        sha256=row.sha256,
        bytes=row.bytes,
        cursor=row.cursor,
        attempt=row.attempt,
        created_at=row.created_at,
    )


def checkpoint_id(job_id: str, attempt: int, name: str, sha256: str) -> str:
    """The same save has the same id; another save under the same name has another."""
    digest = hashlib.sha256("\n".join((job_id, str(attempt), name, sha256)).encode()).hexdigest()
    return f"ckpt_{digest[:32]}"


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """The entries that JSON can hold: a NaN or infinite metric of a step is left out."""
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
