"""The JSON documents that clients read: problems and probes, and what all the others share."""

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    Strict,
)


def rfc3339(seconds: float) -> str:
    """Seconds since the epoch as `2026-11-22T11:25:00.123Z`; never later, for `created_after` compares with it."""
    ms = round(seconds * 1000)
    ms -= ms / 1000 > seconds
    text = datetime.fromtimestamp(ms // 1000, UTC).replace(microsecond=ms % 1000 * 1000)
    return text.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    float,
    PlainSerializer(rfc3339, return_type=str),
    Field(json_schema_extra={"type": "string", "format": "date-time"}),
]
DATE = re.compile(r"\d{4}-\d\d-\d\dT", re.ASCII)
TEN_YEARS_S = 3650 * 86_400


def _is_text(value: object) -> object:
    if not (isinstance(value, str) and DATE.match(value)):
        raise ValueError("must be text like 2027-01-31T12:00:00Z")
    return value


def _is_ahead(value: datetime) -> datetime:
    if not 0 < value.timestamp() - time.time() <= TEN_YEARS_S:
        raise ValueError("must be in the future, and within ten years")
    return value


# A time in a request's body. JSON has no type for it, so that it is text although all else is strict.
FutureInstant = Annotated[AwareDatetime, Strict(False), BeforeValidator(_is_text), AfterValidator(_is_ahead)]
Number = float | None  # null where it is not finite, or not scored


class Document(BaseModel):
    """Every field is always there: null stands for what is not known."""

    model_config = {"json_schema_serialization_defaults_required": True}


class FieldError(Document):
    """One field that does not fit: a JSON pointer into the body (or `query:name`), why, never the value."""

    pointer: str
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457. `code` is the contract; `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = Field(None, description="The path, if it is one of ours.")
    code: str
    request_id: str
    retryable: bool
    errors: list[FieldError]
    context: dict[str, Any] | None = Field(
        None, description="The numbers behind `detail`, where it has some."
    )


class Page(Document):
    """What every list has around its `data`; `next_cursor` goes into `after`."""

    object: Literal["list"] = "list"
    has_more: bool = False
    next_cursor: str | None = None


class Health(Document):
    """The process lives."""

    status: Literal["ok"] = "ok"


class Readiness(Document):
    """`ready` needs the database and the scorer; without a broker jobs are taken and sent later."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, Literal["ok", "down"]]


class Version(Document):
    """Which software answers."""

    name: Literal["kleash"] = "kleash"
    version: str
    api_version: str = Field(description="As in the header API-Version.")
