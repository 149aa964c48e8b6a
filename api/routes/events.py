"""/v1/events: what happens to all jobs of the caller."""

from typing import Annotated

from fastapi import Header, Query

from api.auth import CallerDep, Owner
from api.deps import PartsDep
from api.event_stream import FrameStream
from api.feed_stream import FeedStream
from api.pages import INT64
from api.routing import Responses, v1_router

router = v1_router("jobs", "jobs:read")

STREAM: Responses = {
    200: {
        "description": "Frames `ready` and one for each event",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/events/stream",
    operation_id="events_stream",
    summary="Follow the events of all jobs",
    status_code=200,
    response_class=FrameStream,
    responses=STREAM,
)
async def stream(
    owner: Owner,
    caller: CallerDep,
    parts: PartsDep,
    after: Annotated[
        int | None, Query(ge=0, le=INT64, description="The last id already known; without one, from now on.")
    ] = None,
    last_event_id: Annotated[int | None, Header(ge=0, le=INT64, description="Goes before `after`.")] = None,
) -> FeedStream:
    """Server-sent events of all jobs of the caller: `ready`, whose id is where it begins, and then each event.

    The order is that of the commits: whoever asks again with Last-Event-ID misses none and sees none twice. A list
    of jobs that is read after `ready` has everything before it. The stream does not end by itself for an hour; it
    ends, too, when its key is revoked or expires.
    """

    async def allowed() -> bool:
        return caller.key_id is None or await parts.keyring.holds(caller.key_id)

    known = after if last_event_id is None else last_event_id
    return FeedStream(
        parts.live,
        parts.feeds,
        owner,
        head=await parts.feeds.head(owner, known or 0),
        after=known,
        backfill=lambda sent, limit: parts.store.owner_events(owner, after=sent, limit=limit),
        allowed=allowed,
    )
