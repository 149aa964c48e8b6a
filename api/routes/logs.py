"""/v1/jobs/{job_id}/logs: what a job's processes printed."""

from typing import Annotated

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.auth import Owner
from api.deps import LogsDep
from api.errors import InvalidCursor
from api.pages import INT32, MAX_ROWS, Rows, clamp, cursor, link_next
from api.routing import Responses, problems, v1_router
from api.schemas_job_data import LogList
from api.services.logs import CURSOR, LogCursor

router = v1_router("jobs", "jobs:read")

PLAIN: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get(
    "/jobs/{job_id}/logs",
    operation_id="jobs_logs",
    summary="Show a job's log",
    response_model=LogList,
    responses=PLAIN | problems(400, 404),
)
def logs(
    job_id: str,
    owner: Owner,
    service: LogsDep,
    request: Request,
    response: Response,
    attempt: Annotated[int | None, Query(ge=1, le=INT32, description="All, if not given.")] = None,
    after: Annotated[str | None, cursor(CURSOR, "The `next_cursor` of an earlier answer.")] = None,
    limit: Rows = 100,
    tail: Annotated[
        int | None,
        Query(ge=1, le=MAX_ROWS, description="The last lines instead of the first; not with `after`."),
    ] = None,
    accept: Annotated[str, Header(description="`text/plain` downloads all that is there.")] = "*/*",
) -> LogList | Response:
    """What its processes printed, by attempt: the last megabytes of each.

    To follow it, send `next_cursor` as `after`: it is there also when nothing follows yet.
    """
    if accept.lower().startswith("text/plain"):
        headers = {
            "Content-Disposition": f'attachment; filename="{job_id}.log"',
            "X-Content-Type-Options": "nosniff",
            "Vary": "Accept",
        }
        content = service.whole(job_id, owner, attempt=attempt)
        return StreamingResponse(content, media_type="text/plain", headers=headers)
    cursor = None if after is None else LogCursor.parse(after)
    if after is not None and cursor is None:
        raise InvalidCursor("not a cursor of a log")
    if tail is not None and cursor is None:
        page = service.tail(job_id, owner, attempt=attempt, number=tail)
    else:
        page = service.page(job_id, owner, attempt=attempt, after=cursor, limit=clamp(limit, MAX_ROWS))
    link_next(request, response, str(page.cursor) if page.more else None)
    response.headers["Vary"] = "Accept"
    return LogList.of(page)
