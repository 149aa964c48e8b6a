"""The one exception of the client."""

from collections.abc import Mapping, Sequence
from typing import Any

UNREACHABLE, TIMEOUT = "unreachable", "timeout"  # codes of what got no answer
NEVER_SENT = frozenset({"invalid_url", "invalid_key", "invalid_request"})  # codes


class KleashError(Exception):
    """A request that did not succeed.

    `status` is the HTTP status, 0 if no answer came; `code` is stable (`unknown_model`, `unreachable`, …);
    `detail` is for people; `errors` names the offending fields of a request that was refused; `request_id` is
    what the service's log knows the request by; `retryable` says that the same request may succeed later. The
    codes `invalid_url`, `invalid_key` and `invalid_request` stand for what was never sent.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        errors: Sequence[Mapping[str, Any]] = (),
        request_id: str = "",
        retryable: bool = False,
    ) -> None:
        super().__init__(status, code, detail, errors, request_id, retryable)
        self.status, self.code, self.detail, self.errors = status, code, detail, tuple(errors)
        self.request_id, self.retryable = request_id, retryable

    def __str__(self) -> str:
        fields = [f"{e.get('pointer', '')}: {e.get('detail', '')}" for e in self.errors]
        others = (
            fields[1:] if fields[:1] == [self.detail] else fields
        )  # the service tells the first in `detail`
        return "\n  ".join([f"{self.detail} ({self.code})", *others])


def unreachable(where: object, why: object) -> KleashError:
    """No answer, or not the whole of it."""
    return KleashError(0, UNREACHABLE, f"no answer from {where}: {why}", retryable=True)


def too_slow(where: object) -> KleashError:
    """The request was taken, and no answer came in time. It is not sent again: it may still be worked on."""
    return KleashError(0, TIMEOUT, f"no answer from {where} in time", retryable=True)


def unsendable(why: object) -> KleashError:
    """What HTTP or JSON has no way to say."""
    return KleashError(0, "invalid_request", f"the request cannot be sent: {why}")
