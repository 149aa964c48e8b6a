"""Every error of a job's life, drawn as a tree. All picklable; HTTP status codes live in api/problem_table.py.

JobError
├── JobNotFound              no such job (or not this caller's)
├── KeyNotFound              no such API key
├── QuotaExceeded            the owner has as many of these as it may have
├── IllegalTransition        the job is not in a state that allows this
├── VersionConflict          the job is not (any more) as the client saw it
├── TooMuchMetadata          a change would leave a job with too many pairs
├── JobInUse                 others need the checkpoints of a job that is to be deleted
├── JobDeleted               what an idempotency key made has been deleted since
├── LeaseLost                another attempt owns the job, or it ended: stop, write nothing
├── CheckpointGone           the checkpoint to go on from is not there (any more)
├── NoSuchFile               no such uploaded file (or not this caller's)
├── FileDeleted              the file that an idempotency key made has been deleted
├── FileGone                 an uploaded file that a new job names is not there (any more)
├── FileInUse                a job that is not done reads the file
├── FileQuotaExceeded        the owner's files would be too large together
├── CheckpointNotFound       no such checkpoint (or not this caller's)
├── CheckpointInUse          a job needs it
├── IdempotencyKeyReused     the key was used with another request
├── WebhookNotFound          no such webhook or delivery (or not this caller's)
├── WebhookDeleted           the webhook that an idempotency key made has been deleted
├── TooManyWebhooks          the owner has as many as one may have
├── IdempotencyInProgress    a request with the same key has not ended yet
├── StoreUnavailable         the database is down, locked or overloaded: try again
├── BrokerUnavailable        the message could not be sent; the row stays and is sent again
├── ScorerUnavailable        the scorer cannot be reached, or is starting
├── ScorerOverloaded         the scorer's queue is full
├── DeadlineExceeded         the scorer did not answer in time
└── ScoringRefused           the scorer understood the request and refuses it
"""

from collections.abc import Iterable
from typing import Any


class JobError(Exception):
    """Root of the errors of a job's life."""


class JobNotFound(JobError):
    """No such job."""


class KeyNotFound(JobError):
    """No such API key."""


class QuotaExceeded(JobError):
    """The owner has as many of these as it may have; `context` has the numbers."""

    retry_after_s = 30

    def __init__(self, quota: str, limit: int) -> None:
        super().__init__(quota, limit)
        self.context = {"quota": quota, "limit": limit}

    def __str__(self) -> str:
        return f"the owner has as many {self.context['quota']} as it may have: {self.context['limit']}"


class IllegalTransition(JobError):
    """The job is not in a state that allows this; `allowed_from` are those that do."""

    def __init__(self, job_id: str, action: str, status: str, allowed_from: Iterable[str]) -> None:
        allowed_from = sorted(map(str, allowed_from))
        super().__init__(job_id, action, status, allowed_from)
        self.job_id, self.action, self.status, self.allowed_from = job_id, action, status, allowed_from

    @property
    def context(self) -> dict[str, Any]:
        """For the client."""
        return {"status": self.status, "allowed_from": self.allowed_from}

    def __str__(self) -> str:
        return f"{self.action} is not possible: {self.job_id} is {self.status}"


class VersionConflict(JobError):
    """The job's `version` is none of those that the change was made for."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version

    @property
    def context(self) -> dict[str, Any]:
        """For the client."""
        return {"version": self.version}

    def __str__(self) -> str:
        return f"the job is at version {self.version}, not at one of If-Match"


class TooMuchMetadata(JobError):
    """A change would leave a job with too many pairs of metadata."""


class JobInUse(JobError):
    """Other jobs need the checkpoints of this one."""

    def __init__(self, job_id: str, users: list[str]) -> None:
        super().__init__(job_id, users)
        self.job_id, self.users = job_id, users

    @property
    def context(self) -> dict[str, Any]:
        """For the client: the first of them."""
        return {"jobs": self.users[:20]}

    def __str__(self) -> str:
        return f"{len(self.users)} other jobs need a checkpoint of {self.job_id}"


class JobDeleted(JobError):
    """What the Idempotency-Key made has been deleted since."""


class LeaseLost(JobError):
    """Another attempt owns the job, or it has ended: stop and write nothing."""


class CheckpointGone(JobError):
    """The checkpoint that a job shall go on from is not there (any more)."""


class NoSuchFile(JobError):
    """No such uploaded file."""


class FileDeleted(JobError):
    """The file that an idempotency key made has been deleted."""


class FileGone(JobError):
    """An uploaded file that a new job names is not there (any more)."""


class FileInUse(JobError):
    """A job that is not done reads the file."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"{self.job_id} reads the file and is not done"


class FileQuotaExceeded(JobError):
    """The owner's files would be too large together."""

    retry_after_s = 60  # only deleting helps

    def __init__(self, most_bytes: int) -> None:
        super().__init__(most_bytes)
        self.context = {"quota": "file_bytes", "limit": most_bytes}

    def __str__(self) -> str:
        return f"the files of one owner have at most {self.context['limit']} bytes together; delete some"


class CheckpointNotFound(JobError):
    """No such checkpoint."""


class CheckpointInUse(JobError):
    """A job that has not ended needs the checkpoint, or one that was trained on it."""


class IdempotencyKeyReused(JobError):
    """The Idempotency-Key was used before with another request."""


class WebhookNotFound(JobError):
    """No such webhook, or no such delivery of it."""


class WebhookDeleted(JobError):
    """The webhook that an idempotency key made has been deleted."""


class TooManyWebhooks(JobError):
    """The owner has as many webhooks as one may have."""


class IdempotencyInProgress(JobError):
    """A request with the same Idempotency-Key has begun and not ended."""


class StoreUnavailable(JobError):
    """The database is down, locked or overloaded: the transaction did not happen, or its end is unknown."""


class BrokerUnavailable(JobError):
    """The broker did not take the message."""


class ScorerUnavailable(JobError):
    """The scorer cannot be reached, or is still starting."""


class ScorerOverloaded(JobError):
    """The scorer's queue is full; `retry_after_s` says when to try again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(JobError):
    """The scorer did not answer within the request's deadline; `spent` has the seconds by what they went to."""

    def __init__(self, detail: str, spent: dict[str, float] | None = None) -> None:
        super().__init__(detail, spent)
        self.detail, self.spent = detail, spent or {}

    def __str__(self) -> str:
        return self.detail

    @property
    def context(self) -> dict[str, float]:
        """What a client is told besides."""
        return {f"{name}_s": round(seconds, 3) for name, seconds in self.spent.items()}


class ScoringRefused(JobError):
    """The scorer refuses the request: `code` is stable, `detail` is for people."""

    def __init__(self, code: str, detail: str, context: dict[str, Any] | None = None) -> None:
        super().__init__(code, detail, context)
        self.code, self.detail, self.context = code, detail, context or {}

    def __str__(self) -> str:
        return self.detail
