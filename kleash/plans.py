"""What the client does beyond one request, as generators without input or output: retries, pages, streams.

A plan yields steps and is sent what came of each: an `Answer` for a `Call`, the next bytes of a streamed answer
for `Read` (b"" at its end), nothing for `Pause` and `Item`. What fails is thrown into it. So one plan serves the
sync and the async client.
"""

from collections.abc import Callable, Generator
from typing import Any, Generic, NamedTuple, TypeVar

from kleash.calls import SUCCESS, Answer, Call, Decode
from kleash.documents import Page
from kleash.errors import UNREACHABLE, KleashError
from kleash.problems import as_error

T = TypeVar("T")

MAX_TRIES = 4
MAX_RETRY_AFTER_S = 30.0
FIRST_BACKOFF_S = 0.1  # then twice as long each time


class Pause(NamedTuple):
    """Wait."""

    seconds: float


class Read(NamedTuple):
    """The next bytes of the answer that is streamed."""


class Item(NamedTuple, Generic[T]):
    """Something for the caller."""

    value: T


Reply = Answer | bytes | None
Request = Generator[Call[Any] | Pause, Reply, Answer]
Plan = Generator[Call[Any] | Pause | Read | Item[T], Reply, None]


def attempts(call: Call[Any]) -> Request:
    """A 2xx or 304 answer, asked for again where that is harmless and may help. Raises KleashError."""
    for tried in range(MAX_TRIES):
        last = tried == MAX_TRIES - 1
        try:
            answer = yield call
        except KleashError as error:
            if last or error.code != UNREACHABLE or not call.repeatable:
                raise
            pause_s = FIRST_BACKOFF_S * 2**tried
        else:
            assert isinstance(answer, Answer)
            if answer.status in SUCCESS or answer.status in call.accepts:
                return answer
            if last or (asked := _asked_for(answer)) is None:
                raise as_error(answer)
            pause_s = asked
        yield Pause(pause_s)
    raise AssertionError("the last try returns or raises")


def once(call: Call[T]) -> Plan[T]:
    """The parsed answer of one call."""
    yield Item(call.parse((yield from attempts(call))))


def lines(call: Call[Any], decode: Decode[T]) -> Plan[T]:
    """A streamed answer, piece by piece."""
    yield from attempts(call)
    while True:
        chunk = yield Read()
        assert isinstance(chunk, bytes)
        for value in decode(chunk):
            yield Item(value)
        if not chunk:
            return


def pages(of: Callable[[str | None], Call[Page[T]]]) -> Plan[T]:
    """Every entry of a list; `of` makes the call for the page after a cursor."""
    cursor = None
    while True:
        call = of(cursor)
        page = call.parse((yield from attempts(call)))
        for entry in page["data"]:
            yield Item(entry)
        cursor = page["next_cursor"]
        if cursor is None or not page["has_more"]:
            return


def _asked_for(answer: Answer) -> float | None:
    """Seconds the service asks for, or None when it does not ask to be tried again soon."""
    if answer.status not in (429, 503):
        return None
    try:
        pause_s = float(answer.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return pause_s if 0 <= pause_s <= MAX_RETRY_AFTER_S else None
