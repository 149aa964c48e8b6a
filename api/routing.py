"""What every route below /v1 has in common: a key, strict JSON, and problems in its OpenAPI document."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends

from api.auth import Scope, needs
from api.problems import MEDIA_TYPE
from api.queries import only_known
from api.strict_json import StrictRoute

DESCRIPTIONS = {
    304: "Unchanged since the ETag in If-None-Match",
    400: "The request cannot be read",
    401: "No valid key",
    403: "The key lacks a scope; or open mode, which answers to this machine alone, was reached from elsewhere",
    404: "No such thing, or another owner's",
    409: "Not possible in this state",
    410: "It was there, and has been deleted",
    412: "Not the version of If-Match",
    413: "Too large",
    415: "Not plain JSON",
    422: "The request does not fit, or names what is not there",
    500: "An unexpected error",
    503: "Not now: see Retry-After",
    504: "Not in time",
}
EVERYWHERE = (401, 403, 413, 422, 500, 503)

Responses = dict[int | str, dict[str, Any]]  # OpenAPI's
TEXT = {"schema": {"type": "string"}}  # of a header


def problems(*statuses: int) -> Responses:
    """OpenAPI `responses` of the statuses that answer with a problem."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content: Mapping[str, Any] = {MEDIA_TYPE: {"schema": schema}}
    return {status: {"description": DESCRIPTIONS[status], "content": content} for status in statuses}


BODY_PROBLEMS = problems(400, 415)  # of routes that read a body


def v1_router(tag: str, scope: Scope) -> APIRouter:
    """A router below /v1 whose routes all need a key with the scope."""
    return APIRouter(
        prefix="/v1",
        tags=[tag],
        route_class=StrictRoute,
        dependencies=[needs(scope), Depends(only_known)],
        responses=problems(*EVERYWHERE),
    )
