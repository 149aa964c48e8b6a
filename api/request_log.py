"""The outermost layer: a request id, one log line per request, and an answer to errors nobody expected.

Logs hold routes, statuses, times and places in the code: never a body, a query, a key or an error's message,
which may repeat any of them.
"""

import asyncio
import logging
import re
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from api.problems import internal_error
from api.request_counts import RequestCounts
from api.version import API_VERSION

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags; a later version may have more.
TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)
log = structlog.get_logger("kleash.api")


class RequestLog:
    """ASGI middleware; the request id is in the scope's state, the response's headers and every log line."""

    def __init__(self, app: ASGIApp, counts: RequestCounts) -> None:
        self.app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else f"req_{uuid7().hex}"
        scope.setdefault("state", {})["request_id"] = request_id
        given = [value for name, value in scope["headers"] if name == b"traceparent"]
        trace_id = trace_id_of(given[0]) if len(given) == 1 else None
        status, started = 0, time.perf_counter()

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = scope["state"].get("headers", ())  # for whatever is answered, also refusals
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"api-version", API_VERSION.encode()),
                    *more,
                ]
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)  # in the task that is this request
        scope["state"]["trace_id"] = trace_id
        if trace_id is not None:
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
        try:
            await self.app(scope, receive, tagged)
        except Exception as error:
            log.error("unexpected_error", error=type(error).__qualname__, at=places(error))
            if status:
                raise  # half an answer is out: the server must cut the connection
            await internal_error(scope)(scope, receive, tagged)
        route = getattr(scope.get("route"), "path", None)
        seconds = time.perf_counter() - started
        self._counts.add(scope["method"], route, status, seconds)
        log.info("request", method=scope["method"], route=route, status=status, ms=round(1000 * seconds, 1))


def trace_id_of(traceparent: bytes) -> str | None:
    """The trace that the caller's request belongs to; None if the header is not as W3C Trace Context has it."""
    found = TRACEPARENT.fullmatch(traceparent)
    if found is None or (found[1] == b"00" and found[3] is not None):
        return None
    return found[2].decode()


def places(error: BaseException) -> list[str]:
    """Where the error passed, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


class Stderr:
    """A log that is full or gone costs the line, and not the answer.

    What one turn of the event loop says goes out in one write, after it: a write costs as much as a poll's answer.
    """

    def __init__(self) -> None:
        self._flushes: asyncio.AbstractEventLoop | None = None  # at the end of its turn

    def write(self, line: bytes) -> int:
        """The bytes that were kept."""
        with suppress(OSError):
            return sys.stderr.buffer.write(line)
        return 0

    def flush(self) -> None:
        """Soon in the event loop, at once in a thread; as far as there is room."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._flush()
        else:
            if self._flushes is not loop:
                self._flushes = loop
                loop.call_soon(self._turn_ends)

    def _turn_ends(self) -> None:
        self._flushes = None
        self._flush()

    def _flush(self) -> None:
        with suppress(OSError):
            sys.stderr.buffer.flush()


class NamedLines(structlog.BytesLogger):
    """Whole lines on stderr; `add_logger_name` asks for the name."""

    def __init__(self, name: str = "") -> None:
        super().__init__(Stderr())  # type: ignore[arg-type]  # all that it needs of a file
        self.name = name


def configure() -> None:
    """JSON lines on stderr, for structlog and for the libraries' loggers alike.

    Ours go there without the standard library's records, which cost a poll more than its answer.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(orjson.dumps)],  # bytes
        logger_factory=NamedLines,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)


def _text(line: Any, **options: Any) -> str:
    return orjson.dumps(line, **options).decode()
