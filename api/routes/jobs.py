"""/v1/jobs: the collection, its members, and what one may ask of them."""

from typing import Annotated, Literal

from fastapi import Body, Header, Query, Request, Response

from api.auth import Owner
from api.conditional import IfNoneMatch
from api.deps import JobsDep, TraceId
from api.entity_tags import etag, matches, versions_of
from api.examples import JOB_CANCELS, JOB_PATCHES, JOB_STOPS, JOBS
from api.pages import MAX_PAGE, Limit, clamp, cursor, link_next, page_etag
from api.routing import BODY_PROBLEMS, DESCRIPTIONS, TEXT, Responses, problems, v1_router
from api.schemas_job_requests import METADATA, CancelRequest, DryRunDocument, FilterDep, JobPatch, StopRequest
from api.schemas_jobs import JobDocument, JobList
from api.services.job_ids import JOB_ID
from api.services.jobs import JobQuery, JobService
from jobs.spec import Job, JobSpec
from jobs.states import Action

router = v1_router("jobs", "jobs:read")
changing = v1_router("jobs", "jobs:write")

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="For 24 hours the same key and body give what was made before; another body, 422.",
    ),
]
REPLAYED = TEXT | {"description": "`true` if the key had made the job before."}
CREATED: Responses = {
    200: {"model": DryRunDocument, "description": "With `dry_run=true`: nothing was made"},
    201: {"headers": {"Location": TEXT, "ETag": TEXT, "Idempotency-Replayed": REPLAYED}},
}
LINK = TEXT | {"description": 'rel="next", if there is more.'}
LISTED: Responses = {200: {"headers": {"Link": LINK, "ETag": TEXT}}, 304: {"description": DESCRIPTIONS[304]}}
CHANGED: Responses = {200: {"headers": {"ETag": TEXT}}}
Stop = Annotated[StopRequest | None, Body(openapi_examples=JOB_STOPS)]
Cancel = Annotated[CancelRequest | None, Body(openapi_examples=JOB_CANCELS)]
STOPPING: Responses = {202: {"model": JobDocument, "description": "It runs, and is being stopped"}}


@changing.post(
    "/jobs",
    operation_id="jobs_create",
    summary="Create a job",
    status_code=201,
    response_model=JobDocument,
    responses=CREATED | BODY_PROBLEMS | problems(409, 410),
)
def create(
    spec: Annotated[JobSpec, Body(openapi_examples=JOBS)],
    owner: Owner,
    jobs: JobsDep,
    response: Response,
    trace_id: TraceId,
    dry_run: Annotated[
        bool, Query(description="Check everything, say what it would take, make nothing.")
    ] = False,
    idempotency_key: IdempotencyKey = None,
) -> JobDocument | Response:
    """Queue a training run (`ppo`, also without a type) or the scoring of a file (`score`).

    A worker takes it when one is free; poll the job to follow it.
    """
    if dry_run:
        told = DryRunDocument.of(jobs.dry_run(spec, owner))
        return Response(told.model_dump_json(), media_type="application/json")
    created = jobs.create(spec, owner, idempotency_key, trace_id)
    response.headers["Location"] = f"/v1/jobs/{created.job.id}"
    response.headers["ETag"] = etag(created.job.version)
    if created.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return document(jobs, created.job)


@router.get(
    "/jobs",
    operation_id="jobs_list",
    summary="List jobs, newest first",
    response_model=JobList,
    responses=LISTED | problems(400),
    openapi_extra={"parameters": [METADATA]},
)
def index(
    request: Request,
    response: Response,
    owner: Owner,
    jobs: JobsDep,
    where: FilterDep,
    if_none_match: IfNoneMatch = None,
    limit: Limit = 20,
    after: Annotated[
        str | None, cursor(JOB_ID, "The `next_cursor` of the page before: the id of its last job.")
    ] = None,
    order: Annotated[Literal["desc", "asc"], Query(description="By time: `asc` is oldest first.")] = "desc",
    include: Annotated[Literal["total"] | None, Query(description="What costs more to know.")] = None,
) -> Response:
    """A page of the caller's jobs, those that fit every filter; 304 while none of them has another version."""
    asked = JobQuery(where=where, after=after, oldest_first=order == "asc", limit=clamp(limit, MAX_PAGE))
    total = jobs.count(owner, where) if include else None
    if if_none_match is not None:
        tag = page_etag(request.url.query, jobs.page_versions(owner, asked), total)
        if matches(if_none_match, tag):
            return Response(status_code=304, headers={"ETag": tag})
    page = jobs.page(owner, asked)
    listed = JobList.of(page, total)
    response.headers["ETag"] = page_etag(request.url.query, page, total)
    link_next(request, response, listed.next_cursor)
    return Response(listed.model_dump_json(), headers=response.headers, media_type="application/json")


@changing.patch(
    "/jobs/{job_id}",
    operation_id="jobs_change",
    summary="Change a job's name, metadata or priority",
    responses=CHANGED | BODY_PROBLEMS | problems(404, 409, 412),
)
def change(
    job_id: str,
    patch: Annotated[JobPatch, Body(openapi_examples=JOB_PATCHES)],
    owner: Owner,
    jobs: JobsDep,
    response: Response,
    if_match: Annotated[
        str | None, Header(description="An ETag: change the job only as it was then.")
    ] = None,
) -> JobDocument:
    """Of a job that has ended the priority stays. A queued one has its new place in the queue at once."""
    job = jobs.change(job_id, owner, patch.change(versions_of(if_match)))
    response.headers["ETag"] = etag(job.version)
    return document(jobs, job)


@changing.delete(
    "/jobs/{job_id}",
    operation_id="jobs_delete",
    summary="Delete a job that has ended",
    status_code=204,
    responses=problems(404, 409),
)
def delete(job_id: str, owner: Owner, jobs: JobsDep) -> None:
    """With its events, metrics, samples and results, and its checkpoints unless another job needs one of them.

    Its files are removed by a worker soon after.
    """
    jobs.delete(job_id, owner)


@changing.post(
    "/jobs/{job_id}/pause",
    operation_id="jobs_pause",
    summary="Pause a job",
    responses=STOPPING | BODY_PROBLEMS | problems(404, 409),
)
def pause(job_id: str, owner: Owner, jobs: JobsDep, response: Response, stop: Stop = None) -> JobDocument:
    """Paused at once while queued; else 202 and `pausing` until its process has saved and stopped."""
    return requested(jobs, Action.PAUSE, job_id, owner, response, stop)


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
    responses=STOPPING | BODY_PROBLEMS | problems(404, 409),
)
def cancel(job_id: str, owner: Owner, jobs: JobsDep, response: Response, stop: Cancel = None) -> JobDocument:
    """Cancelled at once if nothing runs; else 202 and `cancelling` until its process has saved and stopped."""
    return requested(jobs, Action.CANCEL, job_id, owner, response, stop)


def requested(
    jobs: JobService,
    action: Action,
    job_id: str,
    owner: str,
    response: Response,
    stop: StopRequest | None = None,
) -> JobDocument:
    """The answer to a request: 202 while the process of the job has yet to follow it."""
    stop = stop or StopRequest()
    job = jobs.request(action, job_id, owner, stop.reason, stop.ending)
    response.status_code = 202 if job.public_status in ("pausing", "cancelling") else 200
    response.headers["ETag"] = etag(job.version)
    return document(jobs, job)


def document(jobs: JobService, job: Job) -> JobDocument:
    """A job with what is said of it."""
    return JobDocument.of(job, jobs.diagnosis(job), jobs.queue_place(job))
