"""What the clients of a batch that failed are told."""

import logging

from jobs.errors import JobError, ScorerUnavailable, ScoringRefused
from rlhf_core.errors import ModelLoadError, RLHFError

log = logging.getLogger(__name__)


def code_of(error: Exception) -> str:
    """The stable code of what went wrong with a model; the log has the rest."""
    failure = failure_of(error, requests=0)
    return failure.code if isinstance(failure, ScoringRefused) else "internal"


def failure_of(error: Exception, *, requests: int) -> JobError:
    """The error that so many requests get; the log has what it does not say."""
    match error:
        case ModelLoadError():
            log.warning("a model cannot be loaded: %s", error)  # its message holds paths of this machine
            return ScoringRefused(error.code, "the model cannot be loaded; the scorer's log says why")
        case ScoringRefused():
            return error
        case RLHFError():
            return ScoringRefused(error.code, str(error))
    log.error("a batch of %d requests failed", requests, exc_info=error)
    return ScorerUnavailable("scoring failed; the scorer's log has the reason")
