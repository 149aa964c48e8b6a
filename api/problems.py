"""Every refusal of the API as one RFC 9457 problem, which repeats no input and is at most 2 KB."""

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from api.errors import UnsupportedMediaType
from api.field_errors import MAX_TEXT, field_error, schema_names
from api.problem_table import ANSWERS, HTTP_CODES, RETRYABLE, TITLES, answer_of

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS, MAX_BYTES = 20, 2048
BAD_BODY = "kleash.bad_body"  # where strict_json leaves its verdict in the scope
RETRY_SOON_S = 5
PARAMETER = re.compile(r"\{\w+\}")  # of a path in OpenAPI
OWN_PATH = re.compile(r"/v1/[a-z]+(/(job|file)_[0-9a-f]{32}(/[a-z]+)?)?")  # of routes: ids and our own words


def problem(
    scope: Scope,
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    context: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response of one problem, with as many of `errors` and as much of `detail` as fit into 2 KB."""
    body: dict[str, Any] = {
        "type": f"urn:kleash:problem:{code}",
        "title": TITLES.get(code, HTTPStatus(status).phrase),
        "status": status,
        "detail": detail[:MAX_TEXT],
        "code": code,
        "request_id": scope.get("state", {}).get("request_id", ""),
        "retryable": status in (429, 503, 504) or code in RETRYABLE,
        "errors": list(errors)[:MAX_ERRORS],
    }
    if "route" in scope and OWN_PATH.fullmatch(scope["path"]):
        body["instance"] = scope["path"]
    if context:
        body["context"] = context
    while len(content := _encoded(body)) > MAX_BYTES and (body["errors"] or body["detail"]):
        if body["errors"]:
            body["errors"].pop()
        else:
            body["detail"] = body["detail"][: len(body["detail"]) // 2]
    return Response(content, status, headers=headers, media_type=MEDIA_TYPE)


def _encoded(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def known_error(request: Request, error: Exception) -> Response:
    """The problem of an error class in ANSWERS."""
    status, code, _, detail = answer_of(error)
    headers: dict[str, str] = {}
    context = getattr(error, "context", None)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status in (429, 503) or code in RETRYABLE:
        headers["Retry-After"] = str(getattr(error, "retry_after_s", RETRY_SOON_S))
    return problem(
        request.scope,
        status,
        code,
        detail or "",
        errors=getattr(error, "errors", ()),
        context=context,
        headers=headers,
    )


def http_error(request: Request, error: Exception) -> Response:
    """What the router raises: no such path, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "malformed_request")
    headers, detail = dict(getattr(error, "headers", None) or {}), str(error.detail)
    if error.status_code == 404:
        detail = "there is no such route: /docs and /openapi.json have them all"
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
        detail = f"this route takes {headers['Allow']}"
    return problem(request.scope, error.status_code, code, detail, headers=headers)


def _methods(request: Request) -> list[str]:
    """What may be asked of the path: Starlette names the methods of the first of its routes only."""
    found: set[str] = set()
    for template, operations in request.app.openapi()["paths"].items():
        if re.fullmatch(PARAMETER.sub("[^/]+", template), request.url.path):
            found |= {method.upper() for method in operations}
    return sorted(found)


def invalid_request(request: Request, error: Exception) -> Response:
    """A request that does not fit its schema, or whose body strict_json could not accept."""
    assert isinstance(error, RequestValidationError)
    if verdict := request.scope.get(BAD_BODY):
        return known_error(request, verdict)
    if isinstance(error.body, bytes):
        return known_error(
            request, UnsupportedMediaType("send Content-Type: application/json (curl --json does)")
        )
    names = schema_names(request.app)
    errors = [field_error(entry, error.body, names) for entry in error.errors()[:MAX_ERRORS]]
    first = f"{errors[0]['pointer'] or 'the request'}: {errors[0]['detail']}" if errors else ""
    return problem(request.scope, 422, "validation_error", first, errors=errors)


def internal_error(scope: Scope) -> Response:
    """An error nobody expected: the log has the rest under the same request id."""
    return problem(scope, 500, "internal", "an unexpected error; the request_id finds it in the log")


def install(app: FastAPI) -> None:
    """Give the application its error handlers."""
    for kind in ANSWERS:
        app.add_exception_handler(kind, known_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
