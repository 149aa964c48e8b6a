"""What every route below /v1 has in common: a key, strict JSON, and problems in its OpenAPI document."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header

from api.auth import needs, principal
from api.problems import MEDIA_TYPE
from api.queries import only_known
from api.strict_json import StrictRoute
from jobs.keys import Scope

DESCRIPTIONS = {
    304: "Unchanged since the ETag in If-None-Match",
    400: "The request cannot be read",
    401: "No valid key",
    403: "Open mode, which answers to this machine alone, was reached from elsewhere",
    404: "No such thing, or another owner's",
    409: "Not possible in this state",
    410: "It was there, and has been deleted",
    412: "Not the version of If-Match",
    413: "Too large",
    415: "Not plain JSON",
    416: "The file has no such range",
    422: "The request does not fit, or names what is not there",
    429: "Too many requests, or too many of these: see Retry-After",
    500: "An unexpected error",
    503: "Not now: see Retry-After",
    504: "Not in time",
    507: "No room to store it",
}
EVERYWHERE = (401, 403, 413, 422, 429, 500, 503)

Responses = dict[int | str, dict[str, Any]]  # OpenAPI's
TEXT = {"schema": {"type": "string"}}  # of a header


def problems(*statuses: int) -> Responses:
    """OpenAPI `responses` of the statuses that answer with a problem."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content: Mapping[str, Any] = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": DESCRIPTIONS[status], "content": content} for status in statuses}


KnownTag = Annotated[str | None, Header(alias="If-None-Match", description="An ETag of before.")]
WantedRange = Annotated[
    str | None, Header(alias="Range", description="One range: `bytes=0-99`, `bytes=100-` or `bytes=-5`.")
]
IfRange = Annotated[
    str | None,
    Header(alias="If-Range", description="The ETag that Range is meant for; of another, all is sent."),
]
PARTS: Responses = {  # of downloads
    206: {"description": "The range", "headers": {"Content-Range": TEXT, "ETag": TEXT}},
    304: {"description": DESCRIPTIONS[304]},
}
BODY_PROBLEMS = problems(400, 415)  # of routes that read a body


def v1_router(tag: str, scope: Scope | None, *, prefix: str = "/v1") -> APIRouter:
    """A router below /v1 whose routes all need a key with the scope; None: any key."""
    responses = problems(*EVERYWHERE)
    if scope is not None:
        responses[403] |= {"description": f"The key lacks the scope `{scope}`; or: {DESCRIPTIONS[403]}"}
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=StrictRoute,
        dependencies=[Depends(principal) if scope is None else needs(scope), Depends(only_known)],
        responses=responses,
    )
