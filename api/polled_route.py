"""The route of polls: what has no options is answered before FastAPI solves the dependencies.

These cost several times what the rest of such an answer does. A key is needed all the same: `at_once` asks whom
the dependencies would ask, and raises what they would raise. What is not plain is left to the route's function.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from api.auth import bearer_token, identify, permit
from api.deps import Parts
from api.entity_tags import etag, matches
from api.services.job_documents import Written
from api.strict_json import StrictRoute
from jobs.states import Status
from jobs.store_live import JobVersion

POLL_HINT_S = {Status.QUEUED: "5", Status.RUNNING: "2", Status.PAUSED: "30"}


class PolledRoute(StrictRoute):
    """GET of a job, `{job_id}` in its path, with the scope jobs:read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind `at_once`."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await at_once(request) or await handler(request)

        return handle


async def at_once(request: Request) -> Response | None:
    """The answer to a poll without options. Raises Unauthenticated, InsufficientScope, JobNotFound, …"""
    if_none_match = authorization = None
    for name, value in request.scope["headers"]:
        if name == b"if-none-match" and if_none_match is None:
            if_none_match = value.decode("latin-1")
        elif name == b"authorization" and authorization is None:
            authorization = value.decode("latin-1")
        elif name == b"prefer":
            return None
    if request.scope["query_string"]:
        return None
    parts: Parts = request.app.state.parts
    caller = await identify(request, parts, bearer_token(authorization))
    permit(caller, "jobs:read")
    return await current(parts, request.path_params["job_id"], caller.owner, if_none_match)


async def current(
    parts: Parts,
    job_id: str,
    owner: str,
    if_none_match: str | None,
    headers: dict[str, str] | None = None,
    include: str | None = None,
) -> Response:
    """The job's document as it is now, or 304. Raises JobNotFound, StoreUnavailable."""
    live = parts.live

    def unchanged(seen: JobVersion) -> bool:
        return if_none_match is not None and matches(if_none_match, etag(seen.version, include))

    seen = await live.seen(job_id, owner, afresh=if_none_match is None and not live.stopping)
    if if_none_match is not None and not unchanged(seen) and not live.stopping:
        # Another replica may have told this client of a later version, and nobody's job goes back in time.
        seen = await live.seen(job_id, owner, afresh=True)
    if live.stopping:
        headers = {"Connection": "close", **(headers or {})}
    if unchanged(seen):
        written = None
    elif include is None:
        written = await parts.documents.get(job_id, owner, seen.version)
    else:
        written = await parts.documents.resolved(job_id, owner)
    return poll_answer(seen, written, headers, include)


def poll_answer(
    seen: JobVersion,
    written: Written | None,
    headers: dict[str, str] | None = None,
    include: str | None = None,
) -> Response:
    """The document, or 304 without one; with a hint when to come back, unless the answer was held back."""
    version = seen.version if written is None else written.version
    headers = {"ETag": etag(version, include), **(headers or {})}
    if not seen.done and "Preference-Applied" not in headers:
        headers["Retry-After"] = POLL_HINT_S[seen.status]
    if written is None:
        return Response(status_code=304, headers=headers)
    return Response(written.body, headers=headers, media_type="application/json")
