"""/v1/jobs/{job_id}/…: what a job has produced, and how it is followed."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kleash.calls import Call, Value, document, json_lines, text
from kleash.documents import Artifact, Checkpoint, Document, Event, LogLine, Metrics, Page, Sample

Level = Literal["info", "warning", "error"]
Order = Literal["asc", "desc"]
Kind = Literal["rollout", "eval"]
SampleOrder = Literal["step", "kl", "reward"]
NO_QUERY: Mapping[str, Value] = {}


def events(
    job_id: str,
    *,
    after: int | str | None = None,
    limit: int | None = None,
    order: Order | None = None,
    level: Level | None = None,
    type: str | None = None,
) -> Call[Page[Event]]:
    """What happened, ascending by `seq`; `after` is the last seq already known."""
    query = {"after": after, "limit": limit, "order": order, "level": level, "type": type}
    return _of_job("jobs_events", job_id, "events", document, query)


def events_stream(job_id: str, *, after: int | None = None) -> Call[None]:
    """The stream of events, from the one after `after`."""
    return Call(
        "jobs_events_stream",
        "GET",
        "/v1/jobs/{job_id}/events/stream",
        lambda _: None,
        {"job_id": job_id},
        query={"after": after},
        headers={"accept": "text/event-stream"},
        repeatable=True,
        streamed=True,
    )


def all_events_stream(*, after: int | None = None) -> Call[None]:
    """The stream of the events of all jobs, from the one after `after`, or from now on."""
    return Call(
        "events_stream",
        "GET",
        "/v1/events/stream",
        lambda _: None,
        query={"after": after},
        headers={"accept": "text/event-stream"},
        repeatable=True,
        streamed=True,
    )


def metrics(
    job_id: str,
    *,
    keys: Sequence[str] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    max_points: int | None = None,
    downsample: Literal["minmax", "last", "none"] | None = None,
    include: Literal["time"] | None = None,
    after: str | None = None,
) -> Call[Metrics]:
    """Series of the keys, down-sampled; with the `next_after` of before as `after`, what came since.

    `include="time"` adds the time of each point.
    """
    query = {
        "keys": ",".join(keys) if keys else None,
        "from_step": from_step,
        "to_step": to_step,
        "max_points": max_points,
        "downsample": downsample,
        "include": include,
        "after": after,
    }
    return _of_job("jobs_metrics", job_id, "metrics", document, query)


def metric_rows(
    job_id: str,
    *,
    keys: Sequence[str] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
) -> Call[list[Document]]:
    """Metrics and timings of every step, ascending."""
    query = {
        "format": "jsonl",
        "keys": ",".join(keys) if keys else None,
        "from_step": from_step,
        "to_step": to_step,
    }
    return _of_job("jobs_metrics", job_id, "metrics", json_lines, query)


def frontier(job_id: str) -> Call[Document]:
    """Rewards of a PPO job against √KL, with Gao's law and its peak where it can be fitted."""
    return _of_job("jobs_frontier", job_id, "frontier", document)


def samples(
    job_id: str,
    *,
    step: int | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    kind: Kind | None = None,
    tokens: bool | None = None,
    limit: int | None = None,
    after: str | None = None,
    order: Order | None = None,
    order_by: SampleOrder | None = None,
) -> Call[Page[Sample]]:
    """Completions: `kind` is `rollout` or `eval` (held-out prompts); `tokens=False` leaves out their columns."""
    query = {
        "step": step,
        "from_step": from_step,
        "to_step": to_step,
        "kind": kind,
        "tokens": tokens,
        "limit": limit,
        "after": after,
        "order": order,
        "order_by": order_by,
    }
    return _of_job("jobs_samples", job_id, "samples", document, query)


def checkpoints(job_id: str) -> Call[Page[Checkpoint]]:
    """The job's saves; each can be scored as `job_…@<name>`."""
    return _of_job("jobs_checkpoints", job_id, "checkpoints", document)


def artifacts(job_id: str) -> Call[Page[Artifact]]:
    """All that can be downloaded."""
    return _of_job("jobs_artifacts", job_id, "artifacts", document)


def logs(
    job_id: str,
    *,
    attempt: int | None = None,
    after: str | None = None,
    limit: int | None = None,
    tail: int | None = None,
) -> Call[Page[LogLine]]:
    """Lines that its processes printed; `next_cursor` is there even when nothing follows yet."""
    query = {"attempt": attempt, "after": after, "limit": limit, "tail": tail}
    return _of_job("jobs_logs", job_id, "logs", document, query)


def log_text(job_id: str, *, attempt: int | None = None) -> Call[str]:
    """The whole log that is kept, as one text."""
    return _of_job("jobs_logs", job_id, "logs", text, {"attempt": attempt}, accept="text/plain")


def results(job_id: str) -> Call[None]:
    """The results of a score job so far, a JSON document a line."""
    return Call(
        "jobs_results",
        "GET",
        "/v1/jobs/{job_id}/results",
        lambda _: None,
        {"job_id": job_id},
        repeatable=True,
        streamed=True,
    )


def _of_job(
    operation: str, job_id: str, part: str, parse: Any, query: Mapping[str, Value] = NO_QUERY, **headers: str
) -> Call[Any]:
    path = f"/v1/jobs/{{job_id}}/{part}"
    names = {"job_id": job_id}
    return Call(operation, "GET", path, parse, names, query, headers=headers, repeatable=True)
