"""/v1/jobs: the collection, its members, and what one may ask of them."""

from typing import Annotated

from fastapi import Body, Header, Query, Response

from api.auth import Owner
from api.conditional import IfNoneMatch, conditional
from api.deps import JobsDep
from api.entity_tags import etag
from api.examples import JOBS
from api.pages import MAX_PAGE, Limit, clamp
from api.routing import BODY_PROBLEMS, DESCRIPTIONS, TEXT, Responses, problems, v1_router
from api.schemas_jobs import JobDocument, JobList, PublicStatus
from api.services.jobs import JobService
from jobs.spec import JobSpec
from jobs.states import Action

router = v1_router("jobs", "jobs:read")
changing = v1_router("jobs", "jobs:write")

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same body gives the same job; with another body, 422.",
    ),
]
REPLAYED = TEXT | {"description": "`true` if the key had made the job before."}
CREATED: Responses = {201: {"headers": {"Location": TEXT, "ETag": TEXT, "Idempotency-Replayed": REPLAYED}}}
LISTED: Responses = {200: {"headers": {"ETag": TEXT}}, 304: {"description": DESCRIPTIONS[304]}}
STOPPING: Responses = {202: {"model": JobDocument, "description": "It runs, and is being stopped"}}


@changing.post(
    "/jobs",
    operation_id="jobs_create",
    summary="Create a job",
    status_code=201,
    responses=CREATED | BODY_PROBLEMS,
)
def create(
    spec: Annotated[JobSpec, Body(openapi_examples=JOBS)],
    owner: Owner,
    jobs: JobsDep,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobDocument:
    """Queue a training run (`ppo`, also without a type) or the scoring of a file (`score`).

    A worker takes it when one is free; poll the job to follow it.
    """
    created = jobs.create(spec, owner, idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{created.job.id}"
    response.headers["ETag"] = etag(created.job.version)
    if created.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return JobDocument.of(created.job, jobs.diagnosis(created.job))


@router.get(
    "/jobs",
    operation_id="jobs_list",
    summary="List jobs, newest first",
    response_model=JobList,
    responses=LISTED | problems(400),
)
def index(
    owner: Owner,
    jobs: JobsDep,
    response: Response,
    if_none_match: IfNoneMatch = None,
    limit: Limit = 20,
    after: Annotated[str | None, Query(description="The `next_cursor` of the page before.")] = None,
    status: PublicStatus | None = None,
) -> Response:
    """A page of the caller's jobs."""
    page = jobs.page(owner, status=status, after=after, limit=clamp(limit, MAX_PAGE))
    return conditional(JobList.of(page), if_none_match, response)


@changing.post(
    "/jobs/{job_id}/pause",
    operation_id="jobs_pause",
    summary="Pause a job",
    responses=STOPPING | problems(404, 409),
)
def pause(job_id: str, owner: Owner, jobs: JobsDep, response: Response) -> JobDocument:
    """Paused at once while queued; else 202 and `pausing` until its process has saved and stopped."""
    return requested(jobs, Action.PAUSE, job_id, owner, response)


@changing.post(
    "/jobs/{job_id}/resume",
    operation_id="jobs_resume",
    summary="Resume a paused job",
    responses=problems(404, 409),
)
def resume(job_id: str, owner: Owner, jobs: JobsDep, response: Response) -> JobDocument:
    """Queued again, to go on from its last checkpoint or shard; a job that is still `pausing` runs on."""
    return requested(jobs, Action.RESUME, job_id, owner, response)


@changing.post(
    "/jobs/{job_id}/cancel",
    operation_id="jobs_cancel",
    summary="Cancel a job",
    responses=STOPPING | problems(404, 409),
)
def cancel(job_id: str, owner: Owner, jobs: JobsDep, response: Response) -> JobDocument:
    """Cancelled at once if nothing runs; else 202 and `cancelling` until its process has stopped."""
    return requested(jobs, Action.CANCEL, job_id, owner, response)


def requested(jobs: JobService, action: Action, job_id: str, owner: str, response: Response) -> JobDocument:
    """The answer to a request: 202 while the process of the job has yet to follow it."""
    job = jobs.request(action, job_id, owner)
    response.status_code = 202 if job.public_status in ("pausing", "cancelling") else 200
    response.headers["ETag"] = etag(job.version)
    return JobDocument.of(job, jobs.diagnosis(job))
