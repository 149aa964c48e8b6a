"""/v1/jobs/{job_id}/…: what hangs on a job."""

import re
from typing import Annotated, Literal

from fastapi import Query, Request, Response

from api.auth import Owner
from api.deps import JobDataDep
from api.downloads import answer
from api.errors import InvalidCursor
from api.pages import INT32, MAX_PAGE, MAX_ROWS, Limit, Rows, clamp, cursor, link_next
from api.routing import PARTS, TEXT, IfRange, KnownTag, Responses, WantedRange, problems, v1_router
from api.schemas_analysis import FrontierDocument
from api.schemas_job_data import CheckpointList, EventList, SampleList
from api.services.job_data import EventFilter, SampleFilter
from jobs.spec import SampleOrder

router = v1_router("jobs", "jobs:read")

JSONL = "application/jsonl"
LEVELS = ("info", "warning", "error")
SAMPLE_CURSOR = re.compile(r"([0-9]{1,9})\.(rollout|eval)\.([0-9]{1,9})")
COMPLETE = TEXT | {"description": "`true` if these are the results of all items."}
ITEMS = TEXT | {"description": "So many lines."}
RESULTS: Responses = PARTS | {
    200: {
        "description": "One JSON object a line, in the order of the items",
        "content": {JSONL: {"schema": {"type": "string"}}},
        "headers": {"Results-Complete": COMPLETE, "Results-Items": ITEMS, "ETag": TEXT},
    }
}
LINKED: Responses = {
    200: {"headers": {"Link": TEXT | {"description": "Where the next page is, if there is one."}}}
}

Level = Literal["info", "warning", "error"]
Order = Annotated[Literal["asc", "desc"], Query()]


@router.get(
    "/jobs/{job_id}/events",
    operation_id="jobs_events",
    summary="List a job's events",
    responses=LINKED | problems(404),
)
def events(
    job_id: str,
    owner: Owner,
    jobs: JobDataDep,
    request: Request,
    response: Response,
    after: Annotated[
        int | None, Query(ge=0, le=INT32, description="The last `seq` already known, in either order.")
    ] = None,
    limit: Limit = 100,
    order: Order = "asc",
    level: Annotated[Level | None, Query(description="Of this level and above.")] = None,
    type: Annotated[  # the parameter's public name
        str | None,
        Query(
            max_length=100,
            pattern=r"^[a-z_]+(\.[a-z_]+)*(\.\*)?$",
            description="A type, or the beginning of some: `checkpoint.*`.",
        ),
    ] = None,
) -> EventList:
    """What happened to the job, oldest first unless asked otherwise."""
    levels = LEVELS[LEVELS.index(level) :] if level else None
    wanted = EventFilter(after, levels, type, newest_first=order == "desc")
    page = EventList.of(job_id, jobs.events(job_id, owner, wanted, limit=clamp(limit, MAX_PAGE)))
    link_next(request, response, page.next_cursor)
    return page


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
    responses=LINKED | problems(400, 404),
)
def samples(
    job_id: str,
    owner: Owner,
    jobs: JobDataDep,
    request: Request,
    response: Response,
    step: Annotated[int | None, Query(ge=0, le=INT32)] = None,
    from_step: Annotated[int, Query(ge=0, le=INT32, description="The first step.")] = 0,
    to_step: Annotated[int | None, Query(ge=0, le=INT32, description="The last step.")] = None,
    kind: Annotated[Literal["rollout", "eval"] | None, Query()] = None,
    limit: Rows = 100,
    after: Annotated[str | None, cursor(SAMPLE_CURSOR)] = None,
    order: Order = "asc",
    order_by: Annotated[
        SampleOrder, Query(description="Samples without a `kl` or `reward` come last, whatever the `order`.")
    ] = "step",
    tokens: Annotated[bool, Query(description="`false` leaves out what there is of each token.")] = True,
) -> SampleList:
    """What the policy wrote, with its rewards and KL. A score job has none, but results."""
    known = None if after is None else sample_place(after)
    wanted = SampleFilter(step, from_step, to_step, kind, known, order == "desc", order_by)
    found = jobs.samples(job_id, owner, wanted, limit=clamp(limit, MAX_ROWS), tokens=tokens)
    page = SampleList.of(found)
    link_next(request, response, page.next_cursor)
    return page


def sample_place(cursor: str) -> tuple[int, str, int]:
    """(step, kind, index). Raises InvalidCursor."""
    match = SAMPLE_CURSOR.fullmatch(cursor)
    if match is None:
        raise InvalidCursor("not a cursor of samples")
    return int(match[1]), match[2], int(match[3])


@router.head(
    "/jobs/{job_id}/results",
    operation_id="jobs_results_head",
    summary="Ask for the size of a score job's results",
    response_class=Response,
    responses=RESULTS | problems(404, 416),
)
@router.get(
    "/jobs/{job_id}/results",
    operation_id="jobs_results",
    summary="Download a score job's results",
    response_class=Response,
    responses=RESULTS | problems(404, 416),
)
def results(
    job_id: str,
    owner: Owner,
    jobs: JobDataDep,
    request: Request,
    if_none_match: KnownTag = None,
    wanted: WantedRange = None,
    if_range: IfRange = None,
) -> Response:
    """Results of the shards completed so far, as JSONL: also while the job runs, and after its cancellation.

    A line has the item's `index`, its `id` and `reward`, and its sums and means, or an `error`. `Range: bytes=N-`
    goes on after N bytes: of an unfinished job, only ever more of them follow, unless a shard was damaged.
    """
    return answer(request, jobs.results(job_id, owner))
