"""Refusals: the problem document (RFC 9457) of an answer as a KleashError."""

import json

from kleash.calls import Answer
from kleash.errors import KleashError


def as_error(answer: Answer) -> KleashError:
    """The problem of a refusal, or what can be said of an answer that is none."""
    try:
        problem = json.loads(answer.content)
        return KleashError(
            answer.status,
            problem["code"],
            problem["detail"],
            problem.get("errors") or (),
            problem.get("request_id") or answer.headers.get("x-request-id", ""),
            bool(problem.get("retryable", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        detail = f"{answer.host} answered {answer.status} without a problem document"
        return KleashError(
            answer.status, "unexpected_answer", detail, retryable=answer.status in (502, 503, 504)
        )
