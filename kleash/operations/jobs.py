"""/v1/jobs: the collection, a job, and what can be asked of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

from kleash.calls import Answer, Call, document, given, new_key, nothing
from kleash.documents import DryRun, Job, JobChanges, Page, Status

JOBS, JOB = "/v1/jobs", "/v1/jobs/{job_id}"


def create(spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[Job]:
    """Create a job. A key is made up when none is given, so a repeated attempt never makes two jobs."""
    headers = new_key(idempotency_key)
    return Call("jobs_create", "POST", JOBS, document, headers=headers, body=spec, repeatable=True)


def dry_run(spec: Mapping[str, Any]) -> Call[DryRun]:
    """What the job would be: its whole config, steps, tokens, memory, and warnings. Creates nothing."""
    query = {"dry_run": True}
    return Call("jobs_create", "POST", JOBS, document, query=query, body=spec, repeatable=True)


def list_(
    *,
    status: Status | Sequence[Status] | None = None,
    type: Literal["ppo", "score"] | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    metadata: Mapping[str, str] | None = None,
    order: Literal["desc", "asc"] | None = None,
    include: Literal["total"] | None = None,
    limit: int | None = None,
    after: str | None = None,
) -> Call[Page[Job]]:
    """One page, newest first; `after` is the `next_cursor` of the page before."""
    query = {
        "status": status,
        "type": type,
        "created_after": created_after,
        "created_before": created_before,
        "metadata": metadata,
        "order": order,
        "include": include,
        "limit": limit,
        "after": after,
    }
    return Call("jobs_list", "GET", JOBS, document, query=query, repeatable=True)


def get(job_id: str, *, include: Literal["resolved_config"] | None = None) -> Call[Job]:
    """The job as it is now; `include="resolved_config"` adds its config with every default."""
    query = {"include": include}
    return Call("jobs_get", "GET", JOB, document, {"job_id": job_id}, query, repeatable=True)


def poll(job_id: str, etag: str | None, wait_s: int) -> Call[Answer]:
    """The job if it is another than `etag`; the service may take `wait_s` seconds to say that it is not."""
    headers = {"if-none-match": etag, "prefer": f"wait={wait_s}" if etag else None}
    return Call(
        "jobs_get",
        "GET",
        JOB,
        lambda answer: answer,
        {"job_id": job_id},
        headers=headers,
        repeatable=True,
        timeout_s=wait_s + 15.0,
    )


def update(job_id: str, *, if_match: str | None = None, **changes: Unpack[JobChanges]) -> Call[Job]:
    """Change `name`, `metadata` (merged; None removes a pair) or `priority`; with an ETag only as it was then."""
    headers = {"if-match": if_match}
    return Call("jobs_change", "PATCH", JOB, document, {"job_id": job_id}, headers=headers, body=changes)


def delete(job_id: str) -> Call[None]:
    """Delete a job that is done, with all it has left."""
    return Call("jobs_delete", "DELETE", JOB, nothing, {"job_id": job_id})


def pause(job_id: str, *, reason: str | None = None) -> Call[Job]:
    """Ask it to stop for now; a running job is `pausing` until its process has saved and stopped."""
    return _action("pause", job_id, reason)


def resume(job_id: str) -> Call[Job]:
    """Let a paused job go on from its last checkpoint."""
    return _action("resume", job_id)


def cancel(
    job_id: str,
    *,
    reason: str | None = None,
    save_checkpoint: bool | None = None,
    grace_period_s: float | None = None,
) -> Call[Job]:
    """Ask for the end; a running job is `cancelling` until its process has saved and stopped.

    It has `grace_period_s` for that, and is killed at once if `save_checkpoint` is False.
    """
    return _action("cancel", job_id, reason, save_checkpoint=save_checkpoint, grace_period_s=grace_period_s)


def _action(name: str, job_id: str, reason: str | None = None, **more: Any) -> Call[Job]:
    body = given(reason=reason, **more) or None
    return Call(f"jobs_{name}", "POST", f"{JOB}/{name}", document, {"job_id": job_id}, body=body)
