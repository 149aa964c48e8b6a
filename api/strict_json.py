"""Request bodies that every JSON parser reads alike, or a refusal that says why.

FastAPI's own parser takes NaN, 1e999, lone surrogates and repeated keys; each of them breaks something later.
"""

import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.errors import ApiError, MalformedJSON, UnsupportedMediaType
from api.problems import BAD_BODY

SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
INT64_DIGITS = 19
MAX_NAMES = 1000  # in one object: no schema of ours comes near, and each unknown name costs an error


def parse(body: bytes) -> Any:
    """The value of a JSON text (RFC 8259, and I-JSON's demands on names and numbers, RFC 7493).

    Raises:
        MalformedJSON: with the place, never with the content.
    """
    try:
        text = body.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_float=_finite,
            parse_int=_int64,
        )
        if SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"byte {error.start} is not UTF-8") from None
    except UnicodeEncodeError:
        raise MalformedJSON("a string holds half of a surrogate pair") from None
    except json.JSONDecodeError as error:
        raise MalformedJSON(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise MalformedJSON("the nesting is too deep") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedJSON("an object has the same name twice")
    if len(found) > MAX_NAMES:
        raise MalformedJSON(f"an object has more than {MAX_NAMES} names")
    return found


def _constant(_name: str) -> NoReturn:
    raise MalformedJSON("NaN and Infinity are not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise MalformedJSON("a number does not fit a 64-bit float")
    return number


def _int64(text: str) -> int:
    if len(text) < INT64_DIGITS:  # a body may hold half a million
        return int(text)
    if len(text.lstrip("-")) > INT64_DIGITS or not -(2**63) <= int(text) < 2**63:
        raise MalformedJSON("an integer does not fit 64 bits")
    return int(text)


class StrictRequest(Request):
    """Reads its body by `parse`.

    A bad body is not refused here but where FastAPI validates it, so that a caller without a key learns
    about the key first. Until then it is `b""`, which fits no schema, and the verdict lies in the scope.
    """

    async def json(self) -> Any:
        """The body's value, or `b""` after leaving a verdict."""
        try:
            if self.headers.get("content-encoding", "identity").lower() != "identity":
                raise UnsupportedMediaType("send the body without Content-Encoding")
            return parse(await self.body())
        except ApiError as verdict:
            self.scope[BAD_BODY] = verdict
            return b""


class StrictRoute(APIRoute):
    """A route whose body is read strictly."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, on a StrictRequest."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle
