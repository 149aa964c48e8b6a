"""/v1/jobs/{job_id} for those who follow a job: polls with ETags, held polls, and its events as a stream."""

from typing import Annotated, Literal

from fastapi import Header, Query, Request, Response

from api.auth import CallerDep, Owner
from api.conditional import IfNoneMatch
from api.deps import PartsDep
from api.entity_tags import etag, matches
from api.event_stream import EventStream, snapshot_frame
from api.held import held
from api.pages import INT32
from api.polls import current
from api.prefer import Prefer, Wait, wait_s
from api.routing import DESCRIPTIONS, TEXT, Responses, problems, v1_router
from api.schemas_jobs import JobDocument, ResolvedJobDocument

router = v1_router("jobs", "jobs:read")

GONE = 499  # for the log; there is nobody to read it
HINT = TEXT | {"description": "Seconds after which another look is worth it; of a job that is not done."}
APPLIED = TEXT | {"description": "`wait=N`, where the answer was held back."}
HEADERS = {"ETag": TEXT, "Retry-After": HINT, "Preference-Applied": APPLIED}
SHOWN: Responses = {200: {"headers": HEADERS}, 304: {"description": DESCRIPTIONS[304], "headers": HEADERS}}
STREAM: Responses = {
    200: {
        "description": "Frames `snapshot`, one for each event, `done`",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/jobs/{job_id}",
    operation_id="jobs_get",
    summary="Show a job",
    response_model=JobDocument | ResolvedJobDocument,
    responses=SHOWN | problems(404),
)
async def show(
    job_id: str,
    request: Request,
    owner: Owner,
    parts: PartsDep,
    if_none_match: IfNoneMatch = None,
    prefer: Prefer = None,
    wait: Wait = None,
    include: Annotated[
        Literal["resolved_config"] | None, Query(description="What else to show; it has an ETag of its own.")
    ] = None,
) -> Response:
    """The job as it is now, or 304 while its version is the one of If-None-Match.

    With `Prefer: wait=N` the 304 waits up to N seconds for a change: a loop without pauses then learns of each at
    once, and costs little.
    """
    live, headers = parts.live, dict[str, str]()

    def unchanged(version: int) -> bool:
        return if_none_match is not None and matches(if_none_match, etag(version, include))

    if if_none_match is not None and (held_s := wait_s(prefer, wait)):
        headers["Preference-Applied"] = f"wait={held_s}"
        await live.seen(job_id, owner)
        if not await held(live, job_id, unchanged, held_s, request.receive):
            return Response(status_code=GONE)
    return await current(parts, job_id, owner, if_none_match, headers, include)


@router.get(
    "/jobs/{job_id}/events/stream",
    operation_id="jobs_events_stream",
    summary="Follow a job's events",
    status_code=200,
    response_class=EventStream,
    responses=STREAM | problems(404),
)
async def stream(
    job_id: str,
    owner: Owner,
    caller: CallerDep,
    parts: PartsDep,
    after: Annotated[int, Query(ge=0, le=INT32, description="The last `seq` already known.")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=INT32, description="Goes before `after`.")] = None,
) -> EventStream:
    """Server-sent events: a `snapshot` of the job, what happened to it and what happens, and `done` at its end.

    A stream that breaks, or that ends without `done`, goes on where it was when it is asked for again with
    Last-Event-ID; browsers do so by themselves. A stream ends, too, when its key is revoked or expires.
    """

    async def allowed() -> bool:
        return caller.key_id is None or await parts.keyring.holds(caller.key_id)

    seen = await parts.live.seen(job_id, owner)
    snapshot = await parts.documents.get(job_id, owner, seen.version)
    return EventStream(
        parts.live,
        parts.histories,
        job_id,
        snapshot=snapshot_frame(snapshot.body),
        after=after if last_event_id is None else last_event_id,
        allowed=allowed,
    )
