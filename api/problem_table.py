"""What each error is over HTTP: the only file that knows the status of an error, one row for each class.

A row's `detail` replaces the error's own message, where that one is for logs.
"""

from typing import NamedTuple

from api.errors import (
    AdapterNotTrainable,
    ArtifactGone,
    BadFile,
    CheckpointMismatch,
    FileNotFound,
    HostNotAllowed,
    InsufficientScope,
    InvalidCursor,
    InvalidQuery,
    MalformedJSON,
    ModelNotFound,
    NoResults,
    PathNotAllowed,
    RateLimited,
    StorageFull,
    Unauthenticated,
    UnknownModel,
    UnsupportedMediaType,
    UnsupportedOption,
    UnusableClassifier,
)
from jobs.errors import (
    CheckpointGone,
    CheckpointInUse,
    CheckpointNotFound,
    DeadlineExceeded,
    FileDeleted,
    FileGone,
    FileInUse,
    FileQuotaExceeded,
    IdempotencyInProgress,
    IdempotencyKeyReused,
    IllegalTransition,
    JobDeleted,
    JobInUse,
    JobNotFound,
    KeyNotFound,
    NoSuchFile,
    QuotaExceeded,
    ScorerOverloaded,
    ScorerUnavailable,
    ScoringRefused,
    StoreUnavailable,
    TooManyWebhooks,
    TooMuchMetadata,
    VersionConflict,
    WebhookDeleted,
    WebhookNotFound,
)
from jobs.outbound_urls import OutboundError
from rlhf_core.errors import UnsafeModel


class Answer(NamedTuple):
    """A problem's constant fields."""

    status: int
    code: str
    title: str
    detail: str | None = None


ANSWERS: dict[type[Exception], Answer] = {
    Unauthenticated: Answer(401, "unauthenticated", "An API key is needed"),
    InsufficientScope: Answer(403, "insufficient_scope", "The key may not do this"),
    RateLimited: Answer(429, "rate_limited", "The key has made too many requests"),
    QuotaExceeded: Answer(429, "quota_exceeded", "The owner has all that it may have"),
    HostNotAllowed: Answer(403, "host_not_allowed", "The server answers to its own machine only"),
    MalformedJSON: Answer(400, "malformed_json", "The body is not valid JSON"),
    UnsupportedMediaType: Answer(415, "unsupported_media_type", "The body must be plain JSON"),
    InvalidCursor: Answer(
        400,
        "invalid_cursor",
        "The cursor is not one of this list",
        "after must be the next_cursor of the page before",
    ),
    ModelNotFound: Answer(404, "not_found", "There is nothing here"),
    InvalidQuery: Answer(422, "invalid_query", "The query string does not fit the operation"),
    UnknownModel: Answer(422, "unknown_model", "There is no such model"),
    UnsupportedOption: Answer(422, "unsupported_option", "The option is not available this way"),
    AdapterNotTrainable: Answer(422, "adapter_not_trainable", "Training starts from a full model"),
    UnusableClassifier: Answer(422, "unusable_classifier", "The reward's model is of no use as one"),
    CheckpointMismatch: Answer(422, "checkpoint_mismatch", "The checkpoint does not fit the job"),
    CheckpointGone: Answer(
        422,
        "unknown_model",
        "There is no such model",
        "a checkpoint that the job names has just been removed",
    ),
    UnsafeModel: Answer(422, "unsafe_model", "The model's folder is not safe to load"),
    PathNotAllowed: Answer(422, "path_not_allowed", "The path is outside the configured roots"),
    FileNotFound: Answer(422, "file_not_found", "There is no such file"),
    FileDeleted: Answer(
        410,
        "deleted",
        "What the Idempotency-Key made has been deleted",
        "the file that this Idempotency-Key made has been deleted: use a new key to make another",
    ),
    FileGone: Answer(
        422, "file_not_found", "There is no such file", "a file that the job names has just been deleted"
    ),
    BadFile: Answer(422, "malformed_file", "The file is not what its purpose needs"),
    NoSuchFile: Answer(404, "not_found", "There is nothing here", "no such file"),
    FileInUse: Answer(409, "in_use", "Something still needs it"),
    FileQuotaExceeded: Answer(429, "quota_exceeded", "The owner has all that it may have"),
    StorageFull: Answer(507, "storage_full", "There is no room for the file"),
    JobNotFound: Answer(404, "not_found", "There is nothing here", "no such job"),
    WebhookNotFound: Answer(404, "not_found", "There is nothing here", "no such webhook or delivery"),
    TooManyWebhooks: Answer(409, "too_many_webhooks", "There are too many webhooks"),
    OutboundError: Answer(422, "url_not_allowed", "The URL must not be asked"),
    KeyNotFound: Answer(404, "not_found", "There is nothing here", "no such key"),
    NoResults: Answer(404, "no_results", "This type of job has no results"),
    ArtifactGone: Answer(404, "artifact_gone", "The file is not there any more"),
    CheckpointNotFound: Answer(404, "not_found", "There is nothing here", "no such checkpoint"),
    CheckpointInUse: Answer(
        409,
        "checkpoint_in_use",
        "The checkpoint is in use",
        "a job that has not ended needs it, or one that was trained on it",
    ),
    IllegalTransition: Answer(409, "invalid_state", "The job is not in a state that allows this"),
    VersionConflict: Answer(412, "version_conflict", "The job has changed since"),
    TooMuchMetadata: Answer(422, "too_much_metadata", "There is too much metadata"),
    JobInUse: Answer(409, "in_use", "Something still needs it"),
    JobDeleted: Answer(
        410,
        "deleted",
        "What the Idempotency-Key made has been deleted",
        "the job that this Idempotency-Key made has been deleted: use a new key to make another",
    ),
    WebhookDeleted: Answer(
        410,
        "deleted",
        "What the Idempotency-Key made has been deleted",
        "the webhook that this Idempotency-Key made has been deleted: use a new key to make another",
    ),
    IdempotencyInProgress: Answer(
        409,
        "idempotency_in_progress",
        "A request with this Idempotency-Key has not ended",
        "another request with this Idempotency-Key is being served: ask again",
    ),
    IdempotencyKeyReused: Answer(
        422,
        "idempotency_key_reused",
        "The Idempotency-Key belongs to another request",
        "this Idempotency-Key was used before with another request",
    ),
    ScorerUnavailable: Answer(
        503,
        "scorer_unavailable",
        "The scorer is not available",
        "the scorer cannot be reached or is starting",
    ),
    ScorerOverloaded: Answer(503, "overloaded", "The scorer is overloaded", "the scorer's queue is full"),
    DeadlineExceeded: Answer(
        504,
        "deadline_exceeded",
        "The scorer did not answer in time",
        "the scorer did not answer in time; context says where the time went, where the scorer knows it",
    ),
    ScoringRefused: Answer(422, "scoring_refused", "The scorer refuses the request"),
    StoreUnavailable: Answer(
        503, "database_unavailable", "The database is not available", "the database did not take the request"
    ),
}
# the status of those codes of ScoringRefused that are not 422
REFUSED = {"input_too_long": 413, "too_many_items": 413, "out_of_memory": 413}
RETRYABLE = {"idempotency_in_progress"}  # besides what 429, 503 and 504 say
# what the framework raises -> code
HTTP_CODES = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
}
# titles of the codes that no row of ANSWERS has
OTHER_TITLES = {
    "malformed_request": "The request could not be read",
    "not_found": "There is nothing here",
    "method_not_allowed": "The method is not supported here",
    "request_too_large": "The request is too large",
    "request_timeout": "The request did not arrive in time",
    "headers_too_large": "The request's headers are too large",
    "too_many_connections": "There are too many connections",
    "range_not_satisfiable": "The file has no such range",
    "validation_error": "The request does not fit the schema",
    "empty_input": "There is nothing to score",
    "input_too_long": "The input is too long",
    "token_id_out_of_range": "The model has no such token",
    "no_chat_template": "The model has no chat template",
    "chat_template_failed": "The chat template does not take the messages",
    "chat_template_mismatch": "The chat template does not tell the answer from its prompt",
    "too_many_items": "There are too many items",
    "tokenizer_mismatch": "The models do not share a tokenizer",
    "model_load_failed": "The model cannot be loaded",
    "internal": "Something went wrong on our side",
}
TITLES = {answer.code: answer.title for answer in ANSWERS.values()} | OTHER_TITLES


def answer_of(error: Exception) -> Answer:
    """The row of an error's class, with the detail that this one has."""
    row = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    if isinstance(error, ScoringRefused):
        row = row._replace(status=REFUSED.get(error.code, row.status), code=error.code)
    return row._replace(detail=row.detail or str(error))
