"""/v1/jobs: parse, ask the service, answer."""

from typing import Annotated, Literal

from fastapi import Header, Query, Response
from fastapi.responses import StreamingResponse

from api.auth import Owner
from api.deps import JobsDep
from api.routing import BODY_PROBLEMS, DESCRIPTIONS, Responses, problems, v1_router
from api.schemas_analysis import FrontierDocument
from api.schemas_jobs import (
    CheckpointList,
    EventList,
    JobDocument,
    JobList,
    MetricsDocument,
    PublicStatus,
    SampleList,
)
from api.services.jobs import JobService
from jobs.spec import JobSpec
from jobs.states import Action

router = v1_router("jobs")
MAX_PAGE, MAX_ROWS, INT32 = 100, 1000, 2**31 - 1

Limit = Annotated[int, Query(description="1 to 100; what is outside is moved inside.")]
Rows = Annotated[int, Query(description="1 to 1000; what is outside is moved inside.")]
Step = Annotated[int, Query(ge=0, le=INT32)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same body gives the same job; with another body, 422.",
    ),
]
TEXT = {"schema": {"type": "string"}}
REPLAYED = TEXT | {"description": "`true` if the key had made the job before."}
CREATED: Responses = {201: {"headers": {"Location": TEXT, "ETag": TEXT, "Idempotency-Replayed": REPLAYED}}}
SHOWN: Responses = {200: {"headers": {"ETag": TEXT}}, 304: {"description": DESCRIPTIONS[304]}}
JSONL = "application/jsonl"
COMPLETE = TEXT | {"description": "`true` if these are the results of all items."}
ITEMS = TEXT | {"description": "So many lines."}
RESULTS: Responses = {
    200: {
        "description": "One JSON object a line, in the order of the items",
        "content": {JSONL: {"schema": {"type": "string"}}},
        "headers": {"Results-Complete": COMPLETE, "Results-Items": ITEMS},
    }
}
STOPPING: Responses = {202: {"model": JobDocument, "description": "It runs, and is being stopped"}}


@router.post(
    "/jobs",
    operation_id="jobs_create",
    summary="Create a job",
    status_code=201,
    responses=CREATED | BODY_PROBLEMS,
)
def create(
    spec: JobSpec, owner: Owner, jobs: JobsDep, response: Response, idempotency_key: IdempotencyKey = None
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


@router.get("/jobs", operation_id="jobs_list", summary="List jobs, newest first", responses=problems(400))
def index(
    owner: Owner,
    jobs: JobsDep,
    limit: Limit = 20,
    after: Annotated[str | None, Query(description="The `next_cursor` of the page before.")] = None,
    status: PublicStatus | None = None,
) -> JobList:
    """A page of the caller's jobs."""
    return JobList.of(jobs.page(owner, status=status, after=after, limit=clamp(limit, MAX_PAGE)))


@router.get(
    "/jobs/{job_id}",
    operation_id="jobs_get",
    summary="Show a job",
    response_model=JobDocument,
    responses=SHOWN | problems(404),
)
def show(
    job_id: str,
    owner: Owner,
    jobs: JobsDep,
    response: Response,
    if_none_match: Annotated[str | None, Header(description="An ETag of before.")] = None,
) -> JobDocument | Response:
    """The job as it is now, or 304 while its version is the one of If-None-Match."""
    if if_none_match is not None and matches(if_none_match, current := etag(jobs.version(job_id, owner))):
        return Response(status_code=304, headers={"ETag": current})
    job = jobs.get(job_id, owner)
    response.headers["ETag"] = etag(job.version)
    return JobDocument.of(job, jobs.diagnosis(job))


@router.post(
    "/jobs/{job_id}/pause",
    operation_id="jobs_pause",
    summary="Pause a job",
    responses=STOPPING | problems(404, 409),
)
def pause(job_id: str, owner: Owner, jobs: JobsDep, response: Response) -> JobDocument:
    """Paused at once while queued; else 202 and `pausing` until its process has saved and stopped."""
    return requested(jobs, Action.PAUSE, job_id, owner, response)


@router.post(
    "/jobs/{job_id}/resume",
    operation_id="jobs_resume",
    summary="Resume a paused job",
    responses=problems(404, 409),
)
def resume(job_id: str, owner: Owner, jobs: JobsDep, response: Response) -> JobDocument:
    """Queued again, to go on from its last checkpoint or shard; a job that is still `pausing` runs on."""
    return requested(jobs, Action.RESUME, job_id, owner, response)


@router.post(
    "/jobs/{job_id}/cancel",
    operation_id="jobs_cancel",
    summary="Cancel a job",
    responses=STOPPING | problems(404, 409),
)
def cancel(job_id: str, owner: Owner, jobs: JobsDep, response: Response) -> JobDocument:
    """Cancelled at once if nothing runs; else 202 and `cancelling` until its process has stopped."""
    return requested(jobs, Action.CANCEL, job_id, owner, response)


@router.get(
    "/jobs/{job_id}/events",
    operation_id="jobs_events",
    summary="List a job's events",
    responses=problems(404),
)
def events(
    job_id: str,
    owner: Owner,
    jobs: JobsDep,
    after: Annotated[int, Query(ge=0, le=INT32, description="The last `seq` already known.")] = 0,
    limit: Limit = 100,
) -> EventList:
    """What happened to the job, oldest first."""
    page = jobs.events(job_id, owner, after=after, limit=clamp(limit, MAX_PAGE))
    return EventList.of(job_id, page)


@router.get(
    "/jobs/{job_id}/metrics",
    operation_id="jobs_metrics",
    summary="List a job's metrics by step",
    responses=problems(404),
)
def metrics(
    job_id: str, owner: Owner, jobs: JobsDep, from_step: Step = 0, limit: Rows = MAX_ROWS
) -> MetricsDocument:
    """A row per step (of a score job: per shard), ascending; go on with `from_step` = the last row's step + 1."""
    series = jobs.metrics(job_id, owner, from_step=from_step, limit=clamp(limit, MAX_ROWS))
    return MetricsDocument.of(job_id, series)


@router.get(
    "/jobs/{job_id}/frontier",
    operation_id="jobs_frontier",
    summary="Show what a job's drift has bought",
    responses=problems(404),
)
def frontier(job_id: str, owner: Owner, jobs: JobsDep) -> FrontierDocument:
    """Rewards against √KL per sequence, Gao's law fitted to each, and its peak. A score job has none."""
    return FrontierDocument.of(job_id, jobs.frontier(job_id, owner))


@router.get(
    "/jobs/{job_id}/checkpoints",
    operation_id="jobs_checkpoints",
    summary="List a job's checkpoints",
    responses=problems(404),
)
def checkpoints(job_id: str, owner: Owner, jobs: JobsDep) -> CheckpointList:
    """Each of them is a model: score it as `job_…@<name>`. A score job has none, but results."""
    return CheckpointList.of(jobs.checkpoints(job_id, owner))


@router.get(
    "/jobs/{job_id}/samples",
    operation_id="jobs_samples",
    summary="List a job's completions",
    responses=problems(404),
)
def samples(
    job_id: str,
    owner: Owner,
    jobs: JobsDep,
    step: Annotated[int | None, Query(ge=0, le=INT32)] = None,
    kind: Annotated[Literal["rollout", "eval"] | None, Query()] = None,
    limit: Rows = 100,
) -> SampleList:
    """What the policy wrote, with its rewards and KL. A score job has none, but results."""
    page = jobs.samples(job_id, owner, step=step, kind=kind, limit=clamp(limit, MAX_ROWS))
    return SampleList.of(page)


@router.get(
    "/jobs/{job_id}/results",
    operation_id="jobs_results",
    summary="Download a score job's results",
    response_class=StreamingResponse,
    responses=RESULTS | problems(404),
)
def results(job_id: str, owner: Owner, jobs: JobsDep) -> StreamingResponse:
    """Results of the shards completed so far, as JSONL: also while the job runs, and after its cancellation.

    A line has the item's `index`, its `id` and `reward`, and its sums and means, or an `error`.
    """
    found = jobs.results(job_id, owner)
    headers = {
        "Results-Complete": str(found.complete).lower(),
        "Results-Items": str(found.items),
        "Content-Length": str(found.size),
    }
    return StreamingResponse(found.content(), media_type=JSONL, headers=headers)


def requested(jobs: JobService, action: Action, job_id: str, owner: str, response: Response) -> JobDocument:
    """The answer to a request: 202 while the process of the job has yet to follow it."""
    job = jobs.request(action, job_id, owner)
    response.status_code = 202 if job.public_status in ("pausing", "cancelling") else 200
    response.headers["ETag"] = etag(job.version)
    return JobDocument.of(job, jobs.diagnosis(job))


def clamp(limit: int, most: int) -> int:
    """Moved into 1 … most."""
    return max(1, min(limit, most))


def etag(version: int) -> str:
    """Strong: equal versions, equal documents."""
    return f'"{version}"'


def matches(if_none_match: str, current: str) -> bool:
    """The weak comparison of RFC 9110 §13.1.2, of any tag in the list."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return current in tags or "*" in tags
