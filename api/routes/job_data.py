"""/v1/jobs/{job_id}/…: what hangs on a job."""

from typing import Annotated, Literal

from fastapi import Query
from fastapi.responses import StreamingResponse

from api.auth import Owner
from api.deps import JobDataDep
from api.pages import INT32, MAX_PAGE, MAX_ROWS, Limit, Rows, clamp
from api.routing import TEXT, Responses, problems, v1_router
from api.schemas_analysis import FrontierDocument
from api.schemas_job_data import CheckpointList, EventList, MetricsDocument, SampleList

router = v1_router("jobs", "jobs:read")

Step = Annotated[int, Query(ge=0, le=INT32)]
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


@router.get(
    "/jobs/{job_id}/events",
    operation_id="jobs_events",
    summary="List a job's events",
    responses=problems(404),
)
def events(
    job_id: str,
    owner: Owner,
    jobs: JobDataDep,
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
    job_id: str, owner: Owner, jobs: JobDataDep, from_step: Step = 0, limit: Rows = MAX_ROWS
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
def frontier(job_id: str, owner: Owner, jobs: JobDataDep) -> FrontierDocument:
    """Rewards against √KL per sequence, Gao's law fitted to each, and its peak. A score job has none."""
    return FrontierDocument.of(job_id, jobs.frontier(job_id, owner))


@router.get(
    "/jobs/{job_id}/checkpoints",
    operation_id="jobs_checkpoints",
    summary="List a job's checkpoints",
    responses=problems(404),
)
def checkpoints(job_id: str, owner: Owner, jobs: JobDataDep) -> CheckpointList:
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
    jobs: JobDataDep,
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
def results(job_id: str, owner: Owner, jobs: JobDataDep) -> StreamingResponse:
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
