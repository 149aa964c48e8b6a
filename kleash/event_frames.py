"""Server-sent events, decoded as their bytes come (WHATWG HTML §9.2)."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from kleash.errors import KleashError

RETRY_S = 3.0


class Frame(NamedTuple):
    """One event of a stream: `snapshot`, `ready`, `done`, or what happened; `id` is where it stands."""

    event: str
    data: dict[str, Any]
    id: int | None


class Frames:
    """Bytes in, whole frames out; a part of a frame waits for the rest. `retry_s` is what the service asks for."""

    def __init__(self) -> None:
        self.retry_s = RETRY_S
        self._rest = b""
        self._fields: dict[str, list[str]] = {}

    def __call__(self, chunk: bytes) -> Iterator[Frame]:
        """The frames that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if line:
                name, _, value = line.partition(":")
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
                continue
            fields, self._fields = self._fields, {}
            if fields.get("retry", [""])[-1].isdecimal():
                self.retry_s = int(fields["retry"][-1]) / 1000
            if "data" in fields:
                yield _frame(fields)


def _frame(fields: dict[str, list[str]]) -> Frame:
    try:
        data = json.loads("\n".join(fields["data"]))
    except (ValueError, RecursionError) as error:
        raise KleashError(200, "unexpected_answer", "the service sent an event that is not JSON") from error
    last_id = fields.get("id", [""])[-1]
    return Frame(fields.get("event", ["message"])[-1], data, int(last_id) if last_id.isdecimal() else None)
