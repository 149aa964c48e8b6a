"""The route of polls: what memory can answer is answered before FastAPI solves the dependencies.

These cost several times what the rest of such an answer does. A key is needed all the same: `at_once` asks whom
the dependencies would ask, and raises what they would raise. What is not plain is left to the route's function.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response

from api.auth import bearer, permit, principal
from api.deps import Parts
from api.entity_tags import etag, matches
from api.services.job_documents import Written
from api.strict_json import StrictRoute
from jobs.errors import JobNotFound
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
    """A 304, if the version at hand is the caller's. Raises Unauthenticated, InsufficientScope, JobNotFound, …"""
    if_none_match = None
    for name, value in request.scope["headers"]:
        if name == b"if-none-match" and if_none_match is None:
            if_none_match = value.decode("latin-1")
        elif name == b"prefer":
            return None
    parts: Parts = request.app.state.parts
    job_id = request.path_params["job_id"]
    seen = parts.live.at_hand(job_id)
    if seen is None or request.scope["query_string"]:
        return None
    if if_none_match is None or not matches(if_none_match, etag(seen.version)):
        return None
    caller = await principal(request, parts, await bearer(request))
    permit(caller, "jobs:read")
    if caller.owner != seen.owner:
        raise JobNotFound(job_id)
    return poll_answer(seen, None)


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
