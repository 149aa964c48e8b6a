"""One operation of the HTTP contract as a value: what is sent, and how the answer is read. No input or output.

`kleash.operations` describes every operation as a function that returns a `Call`; `kleash.client` and
`kleash.async_client` send them.
"""

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from kleash.errors import KleashError, unsendable

T = TypeVar("T")
Value = str | int | bool | Sequence[str] | Mapping[str, str] | None

SUCCESS, NOT_MODIFIED = range(200, 300), 304
WORD = re.compile(r"[A-Za-z0-9_-]+")


class Answer(NamedTuple):
    """What came back; `headers` know no upper and lower case, `content` is empty where it is streamed."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    host: str


Parse = Callable[[Answer], T]
Decode = Callable[[bytes], Iterable[T]]  # bytes as they come, b"" at the end -> what is complete


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how its answer is read.

    `operation` is its id in the OpenAPI document, `path` the template there and `names` what it is filled with;
    values that are None are not sent. `repeatable`: sent twice it does no more than once.
    """

    operation: str
    method: str
    path: str
    parse: Parse[T]
    names: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Value] = field(default_factory=dict)
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: Any = None  # as JSON
    content: bytes | None = None  # as it is
    repeatable: bool = False
    streamed: bool = False
    accepts: Collection[int] = (NOT_MODIFIED,)  # beside 2xx
    timeout_s: float | None = None  # longer than the client's

    @property
    def url(self) -> str:
        """The path with its names filled in. Raises KleashError where a name would lead elsewhere."""
        return self.path.format_map({name: _segment(name, value) for name, value in self.names.items()})

    @property
    def params(self) -> list[tuple[str, str]]:
        """The query: lists repeat the name, mappings are `name[key]=value`."""
        return [pair for name, value in self.query.items() for pair in _pairs(name, value)]

    def encoded(self) -> bytes | None:
        """The body's bytes. Raises KleashError for what JSON cannot say."""
        if self.body is None:
            return self.content
        try:
            return json.dumps(self.body, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise unsendable(error) from error

    def sent_headers(self) -> dict[str, str]:
        """Those that are given; a JSON body says that it is one."""
        given = {name: value for name, value in self.headers.items() if value is not None}
        return {"Content-Type": "application/json"} | given if self.body is not None else given


def document(answer: Answer) -> Any:
    """The JSON object of an answer. Raises KleashError."""
    try:
        found = json.loads(answer.content)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise KleashError(
            answer.status,
            "unexpected_answer",
            f"{answer.host} answered something else than a JSON object",
        )
    return found


def nothing(answer: Answer) -> None:
    """A 204 has no document."""


def text(answer: Answer) -> str:
    """The answer as UTF-8."""
    return answer.content.decode("utf-8", "replace")


def json_lines(answer: Answer) -> list[Any]:
    """One JSON value for each line of the answer."""
    return [*JsonLines()(answer.content), *JsonLines()(b"")]


class JsonLines:
    """Decodes JSON lines as their bytes come; what is left at the end without a line feed is a line too."""

    def __init__(self) -> None:
        self._rest = b""

    def __call__(self, chunk: bytes) -> Iterable[Any]:
        """The values of the lines that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n") if chunk else [self._rest, b""]
        try:
            return [json.loads(line) for line in lines if line.strip()]
        except (ValueError, RecursionError) as error:
            raise KleashError(200, "unexpected_answer", "the service sent a line that is not JSON") from error


def new_key(given: str | None) -> dict[str, str | None]:
    """The header that makes a repeated creation harmless."""
    return {"idempotency-key": given or str(uuid.uuid4())}


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None: what is left out is left to the service."""
    return {name: value for name, value in fields.items() if value is not None}


def _segment(name: str, value: str) -> str:
    """A name in a path. Ids are words; models and files have slashes, but no way up."""
    if name in ("model_id", "name"):
        if value and not any(part in ("", ".", "..") for part in value.split("/")):
            try:
                return quote(value, safe="/@")
            except UnicodeEncodeError as error:
                raise unsendable(error) from error
    elif WORD.fullmatch(value):
        return value
    raise KleashError(404, "not_found", f"no {name.removesuffix('_id')} can have this name")


def _pairs(name: str, value: Value) -> Iterable[tuple[str, str]]:
    match value:
        case None:
            return []
        case bool():
            return [(name, str(value).lower())]
        case str() | int():
            return [(name, str(value))]
        case Mapping():
            return [(f"{name}[{key}]", word) for key, word in value.items()]
        case _:
            return [(name, word) for word in value]
