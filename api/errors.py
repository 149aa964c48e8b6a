"""Every refusal of the API as one RFC 9457 problem: the only file that knows HTTP status codes.

ApiError
├── Unauthenticated        no key, or not one of ours
├── HostNotAllowed         open mode was reached from elsewhere, or under a name that is not loopback
├── MalformedJSON          the body is not JSON that every parser reads alike
├── UnsupportedMediaType   the body is not declared as plain JSON
├── InvalidCursor          `after` is not a cursor of this list
├── UnknownModel           no registered name, checkpoint or folder is called so
├── AdapterNotTrainable    a job would start from an adapter
├── UnusableClassifier     a reward's model is no classifier, or has no such label
├── CheckpointMismatch     a job would go on from a checkpoint that does not fit it
├── NoResults              the job is of a type that has no results
├── PathNotAllowed         a path leads outside the configured roots
└── FileNotFound           a file named in the request is not there
starlette's HTTPException
└── RequestTooLarge        the body exceeds the limit

A problem never repeats what the client sent, and is at most 2 KB.
"""

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

from api.field_errors import MAX_TEXT, field_error, schema_names
from jobs.errors import (
    CheckpointGone,
    DeadlineExceeded,
    IdempotencyKeyReused,
    IllegalTransition,
    JobNotFound,
    ScorerOverloaded,
    ScorerUnavailable,
    ScoringRefused,
    StoreUnavailable,
)

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS, MAX_BYTES = 20, 2048
BAD_BODY = "kleash.bad_body"  # where strict_json leaves its verdict in the scope
RETRY_SOON_S = 5
OWN_PATH = re.compile(r"/v1/[a-z]+(/job_[0-9a-f]{32}(/[a-z]+)?)?")  # of routes: holds ids and our own words


class ApiError(Exception):
    """Root of what the API itself refuses; the message is for people and repeats no input."""


class Unauthenticated(ApiError):
    """No key, or not one of ours."""


class HostNotAllowed(ApiError):
    """Open mode was reached from elsewhere, or under a name that is not loopback (DNS rebinding)."""


class MalformedJSON(ApiError):
    """The body is not JSON that every parser reads alike."""


class UnsupportedMediaType(ApiError):
    """The body is not declared as plain JSON."""


class InvalidCursor(ApiError):
    """`after` is not a cursor of this list."""


class UnknownModel(ApiError):
    """No registered name, checkpoint or folder is called so."""


class AdapterNotTrainable(ApiError):
    """A job would start from an adapter."""


class UnusableClassifier(ApiError):
    """A reward's model is no full sequence classifier, or has no such label."""


class CheckpointMismatch(ApiError):
    """A job would go on from a checkpoint that does not fit it."""


class NoResults(ApiError):
    """The job is of a type that has no results."""


class PathNotAllowed(ApiError):
    """A path leads outside the configured roots."""


class FileNotFound(ApiError):
    """A file named in the request is not there."""


class RequestTooLarge(HTTPException):
    """The body exceeds the limit. An HTTPException, because FastAPI lets no other pass while it reads."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the body may have at most {max_bytes} bytes")


# error class -> (status, code, detail, or None for the error's own message)
STATUS: dict[type[Exception], tuple[int, str, str | None]] = {
    Unauthenticated: (401, "unauthenticated", None),
    HostNotAllowed: (403, "host_not_allowed", None),
    MalformedJSON: (400, "malformed_json", None),
    UnsupportedMediaType: (415, "unsupported_media_type", None),
    InvalidCursor: (400, "invalid_cursor", "after must be the next_cursor of the page before"),
    UnknownModel: (422, "unknown_model", None),
    AdapterNotTrainable: (422, "adapter_not_trainable", None),
    UnusableClassifier: (422, "unusable_classifier", None),
    CheckpointMismatch: (422, "checkpoint_mismatch", None),
    CheckpointGone: (422, "unknown_model", "a checkpoint that the job names has just been removed"),
    PathNotAllowed: (422, "path_not_allowed", None),
    FileNotFound: (422, "file_not_found", None),
    JobNotFound: (404, "not_found", "no such job"),
    NoResults: (404, "no_results", None),
    IllegalTransition: (409, "invalid_state", None),
    IdempotencyKeyReused: (
        422,
        "idempotency_key_reused",
        "this Idempotency-Key was used before with another request",
    ),
    ScorerUnavailable: (503, "scorer_unavailable", "the scorer cannot be reached or is starting"),
    ScorerOverloaded: (503, "overloaded", "the scorer's queue is full"),
    DeadlineExceeded: (504, "deadline_exceeded", "the scorer did not answer in time"),
    ScoringRefused: (422, "scoring_refused", None),
    StoreUnavailable: (503, "database_unavailable", "the database did not take the request"),
}
# codes of ScoringRefused that are not 422
REFUSED = {"input_too_long": 413, "too_many_items": 413, "out_of_memory": 413}
# what the framework raises -> code
HTTP_CODES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
}
TITLES = {
    "unauthenticated": "An API key is needed",
    "host_not_allowed": "The server answers to its own machine only",
    "malformed_json": "The body is not valid JSON",
    "malformed_request": "The request could not be read",
    "unsupported_media_type": "The body must be plain JSON",
    "invalid_cursor": "The cursor is not one of this list",
    "unknown_model": "There is no such model",
    "adapter_not_trainable": "Training starts from a full model",
    "unusable_classifier": "The reward's model is of no use as one",
    "checkpoint_mismatch": "The checkpoint does not fit the job",
    "path_not_allowed": "The path is outside the configured roots",
    "file_not_found": "There is no such file",
    "not_found": "There is nothing here",
    "method_not_allowed": "The method is not supported here",
    "request_too_large": "The request is too large",
    "validation_error": "The request does not fit the schema",
    "invalid_state": "The job is not in a state that allows this",
    "idempotency_key_reused": "The Idempotency-Key belongs to another request",
    "empty_input": "There is nothing to score",
    "input_too_long": "The input is too long",
    "token_id_out_of_range": "The model has no such token",
    "no_chat_template": "The model has no chat template",
    "chat_template_failed": "The chat template does not take the messages",
    "chat_template_mismatch": "The chat template does not tell the answer from its prompt",
    "too_many_items": "There are too many items",
    "tokenizer_mismatch": "The models do not share a tokenizer",
    "model_load_failed": "The model cannot be loaded",
    "no_results": "This type of job has no results",
    "scoring_refused": "The scorer refuses the request",
    "scorer_unavailable": "The scorer is not available",
    "overloaded": "The scorer is overloaded",
    "deadline_exceeded": "The scorer did not answer in time",
    "database_unavailable": "The database is not available",
    "internal": "Something went wrong on our side",
}


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
        "retryable": status in (429, 503, 504),
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
    """The problem of an error class in STATUS."""
    status, code, fixed = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    headers: dict[str, str] = {}
    context = None
    if isinstance(error, ScoringRefused):
        status, code, context = REFUSED.get(error.code, status), error.code, error.context
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        headers["Retry-After"] = str(getattr(error, "retry_after_s", RETRY_SOON_S))
    return problem(request.scope, status, code, fixed or str(error), context=context, headers=headers)


def http_error(request: Request, error: Exception) -> Response:
    """What the router raises: no such path, wrong method, body too large."""
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "malformed_request")
    return problem(
        request.scope, error.status_code, code, str(error.detail), headers=getattr(error, "headers", None)
    )


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
    for kind in STATUS:
        app.add_exception_handler(kind, known_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
