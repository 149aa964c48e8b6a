"""Polls, `GET /v1/jobs/{job_id}` without options, are answered before the router.

The router and FastAPI's dependencies cost several times what the rest of such an answer does. A key is needed all
the same: `Polls` asks whom the dependencies would ask, and refuses as they would. What is not plain is left to the
route's function.
"""

from typing import NamedTuple

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth import bearer_token, identify, permit
from api.deps import Parts
from api.entity_tags import etag, matches
from api.problem_table import ANSWERS
from api.problems import known_error
from api.services.job_documents import Written
from api.services.job_ids import JOB_ID
from jobs.states import Status
from jobs.store_live import JobVersion

POLL_HINT_S = {Status.QUEUED: "5", Status.RUNNING: "2", Status.PAUSED: "30"}
PREFIX = "/v1/jobs/"


class Named(NamedTuple):
    """All that logs and counts want of a route."""

    path: str


REFUSALS = tuple(ANSWERS)
SHOW = Named("/v1/jobs/{job_id}")


class Polls:
    """ASGI middleware, inside the request log."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self.app, self._parts = app, parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        answer = await self._answer(scope) if scope["type"] == "http" and scope["method"] == "GET" else None
        await (answer or self.app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        """None if it is no poll, or has options."""
        path: str = scope["path"]
        job_id = path.removeprefix(PREFIX)
        if job_id == path or scope["query_string"] or not JOB_ID.fullmatch(job_id):
            return None
        if_none_match = authorization = None
        for name, value in scope["headers"]:
            if name == b"if-none-match" and if_none_match is None:
                if_none_match = value.decode("latin-1")
            elif name == b"authorization" and authorization is None:
                authorization = value.decode("latin-1")
            elif name == b"prefer":
                return None
        scope["route"] = SHOW
        request, parts = Request(scope), self._parts
        try:
            caller = await identify(request, parts, bearer_token(authorization))
            permit(caller, "jobs:read")
            return await current(parts, job_id, caller.owner, if_none_match)
        except REFUSALS as error:
            return known_error(request, error)


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
