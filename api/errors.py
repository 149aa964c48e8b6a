"""What the API itself refuses. Statuses, codes and titles are in api/problem_table.py.

ApiError
├── Unauthenticated        no key, or not one of ours
├── InsufficientScope      the key may not do this
├── RateLimited            the key has made too many requests
├── HostNotAllowed         open mode was reached from elsewhere, or under a name that is not loopback
├── MalformedJSON          the body is not JSON that every parser reads alike
├── UnsupportedMediaType   the body is not declared as plain JSON
├── UnsupportedOption      a field's value is for other ways to ask
├── InvalidCursor          `after` is not a cursor of this list
├── ModelNotFound          the path names no registered model and no checkpoint of the caller's
├── InvalidQuery           the query string has a parameter that the operation does not know
├── UnknownModel           no registered name, checkpoint or folder is called so
├── AdapterNotTrainable    a job would start from an adapter
├── UnusableClassifier     a reward's model is no classifier, or has no such label
├── CheckpointMismatch     a job would go on from a checkpoint that does not fit it
├── NoResults              the job is of a type that has no results
├── ArtifactGone           a file that a row names is not there, or is another one
├── PathNotAllowed         a path leads outside the configured roots
├── FileNotFound           a file named in the request is not there
├── BadFile                an uploaded file is not what its purpose needs
└── StorageFull            there is no room for an uploaded file
starlette's HTTPException
└── RequestTooLarge        the body exceeds the limit
"""

from starlette.exceptions import HTTPException


class ApiError(Exception):
    """Root of what the API itself refuses; the message is for people and repeats no input."""


class Unauthenticated(ApiError):
    """No key, or not one of ours."""


class InsufficientScope(ApiError):
    """The key may not do this; `context` names the scope that it lacks."""

    def __init__(self, scope: str) -> None:
        super().__init__(f"this needs a key with the scope {scope}")
        self.context = {"scope": scope}


class RateLimited(ApiError):
    """The key has made too many requests."""

    def __init__(self, per_minute: int, retry_after_s: int) -> None:
        super().__init__(f"a key may make {per_minute} requests a minute")
        self.retry_after_s = retry_after_s


class HostNotAllowed(ApiError):
    """Open mode was reached from elsewhere, or under a name that is not loopback (DNS rebinding)."""


class MalformedJSON(ApiError):
    """The body is not JSON that every parser reads alike."""


class UnsupportedMediaType(ApiError):
    """The body is not declared as plain JSON."""


class UnsupportedOption(ApiError):
    """A field's value is for other ways to ask: `pointer` names the field."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(pointer, detail)
        self.pointer, self.detail = pointer, detail

    def __str__(self) -> str:
        return f"{self.pointer}: {self.detail}"

    @property
    def errors(self) -> list[dict[str, str]]:
        """The problem's."""
        return [{"pointer": self.pointer, "code": "unsupported_option", "detail": self.detail}]


class InvalidCursor(ApiError):
    """`after` is not a cursor of this list."""


class ModelNotFound(ApiError):
    """The path names no registered model and no checkpoint of the caller's."""


class InvalidQuery(ApiError):
    """The query string has a parameter that the operation does not know, or one twice."""


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


class ArtifactGone(ApiError):
    """A file that a row names is not there, or is another one."""


class PathNotAllowed(ApiError):
    """A path leads outside the configured roots."""


class FileNotFound(ApiError):
    """A file named in the request is not there."""


class BadFile(ApiError):
    """An uploaded file is not what its purpose needs."""


class StorageFull(ApiError):
    """There is no room for an uploaded file, or its folder takes nothing."""


class RequestTooLarge(HTTPException):
    """The body exceeds the limit. An HTTPException, because FastAPI lets no other pass while it reads."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the body may have at most {max_bytes} bytes")
