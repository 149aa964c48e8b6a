"""Connections that hold a place and send or read too little are given up; uvicorn itself waits for ever.

A client has `timeout_s` for a request's head, for a body as many seconds more as its bytes take at a slow line's
rate, and must go on reading its answer at such a rate. While the server works, or has nothing to say, no time
runs: long polls, event streams and downloads that move are never cut.
"""

from collections import Counter
from fcntl import ioctl
from sys import byteorder
from termios import TIOCOUTQ
from typing import Any, NamedTuple

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uuid_utils import uuid7

from api.abortable import AbortableProtocol
from api.problems import problem
from jobs.settings import LOOPBACK, Settings

MAX_HEAD_BYTES = 16_384
MAX_HEADERS = 100
UP_BYTES_PER_S = 16_384  # the slowest line that a body may come by
DOWN_BYTES_PER_S = 4_096  # and the slowest reader
LOOKS = 4  # in the time that a client has
LINGER_S = 0.5  # for one turned away to read why
log = structlog.get_logger("kleash.api")


class Refusal(NamedTuple):
    """What the server says before it closes a connection."""

    status: int
    code: str
    detail: str


TIMEOUT = Refusal(408, "request_timeout", "the request did not arrive in time")
UNREADABLE = Refusal(400, "malformed_request", "this is no HTTP/1.1 request that can be read")
LARGE_HEAD = Refusal(
    431,
    "headers_too_large",
    f"a request's line and headers have at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers",
)
FULL = Refusal(503, "too_many_connections", "the server has as many connections as it takes")
GREEDY = Refusal(429, "too_many_connections", "your address has as many connections as one may have")


class Census:
    """How many connections each address has, and how many there may be."""

    def __init__(self, settings: Settings) -> None:
        self.timeout_s = settings.client_timeout_s
        self._most, self._most_per_client = settings.max_connections, settings.max_connections_per_client
        self._of: Counter[str] = Counter()

    def enter(self, address: str | None, everyone: int) -> Refusal | None:
        """Count one more; why it may not stay, if so."""
        if address is not None:
            self._of[address] += 1
        if everyone > self._most:
            return FULL
        if address is None or address in LOOPBACK or self._of[address] <= self._most_per_client:
            return None
        return GREEDY

    def leave(self, address: str | None) -> None:
        """Count one less."""
        if address is not None:
            self._of[address] -= 1
            if not self._of[address]:
                del self._of[address]


class LimitedConnection(AbortableProtocol):
    """uvicorn's connection, with deadlines for its client and limits on the head of a request."""

    def __init__(self, *args: Any, census: Census, **options: Any) -> None:
        super().__init__(*args, **options)
        self._census = census
        self._turned_away = False
        self._in_head = self._head_began = False
        self._timer: Any = None
        self._since = 0.0  # the client's time runs from here
        self._received = 0  # bytes of the head or body under way
        self._untaken = 0  # bytes of answers, when they were last counted

    def connection_made(self, transport: Any) -> None:
        """Count it; from now on look at it a few times in every `timeout_s`."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else None
        self._restart()
        refusal = self._census.enter(self._address, len(self.connections))
        if refusal is not None:
            self._turned_away = True
            self.connections.discard(self)
            transport.write(_wire(refusal))
            transport.write_eof()
            self._timer = self.loop.call_later(LINGER_S, transport.abort)
        else:
            self._look_again()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()
        self._census.leave(self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it; if it neither begins nor ends the head, count it."""
        if self._turned_away:
            return
        self._head_began = False
        super().data_received(data)
        if self._in_head and not self._head_began:
            self._received += len(data)
            if self._received > MAX_HEAD_BYTES:
                self._refuse(LARGE_HEAD)

    def on_message_begin(self) -> None:
        """A head begins; the time of one after an answer runs from here."""
        self._in_head = self._head_began = True
        self._received = 0
        if self.cycle is not None and self.cycle.response_complete and not self._unsent():
            self._since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it if it is one of the head's (else a trailer's) and not one of too many."""
        if self._in_head and len(self.headers) <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, or the refusal of its head."""
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        application = self.app
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self.app = _head_too_large
        try:
            super().on_headers_complete()
        finally:
            self.app = application
        self._restart()

    def on_body(self, body: bytes) -> None:
        """Count it."""
        self._received += len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        """Time runs for reading it, then for the next request."""
        super().on_response_complete()
        self._restart()

    def pause_writing(self) -> None:
        """Time runs for reading."""
        super().pause_writing()
        self._restart()

    def send_400_response(self, msg: str) -> None:
        """A problem, as every refusal."""
        self._refuse(UNREADABLE)

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: a client may fill no log."""

    def _restart(self) -> None:
        self._since, self._received, self._untaken = self.loop.time(), 0, 0

    def _look_again(self) -> None:
        now = self.loop.time()
        if self._timer is not None:
            self._since += now - self._timer.when()  # how late we are is not the client's fault
        self._timer = self.loop.call_later(self._census.timeout_s / LOOKS, self._look_again)
        if now - self._since < self._allowed_s(now):
            return
        unsent = self._unsent()
        log.info("client_dropped", in_head=self._in_head, unsent=unsent)
        in_body = self.cycle is not None and not self.cycle.response_started
        if (self._in_head or in_body) and not unsent:
            self._refuse(TIMEOUT)
        else:
            self.transport.abort()

    def _allowed_s(self, now: float) -> float:
        """The seconds that what it does may take; `_since` is now where it does nothing or goes on well."""
        timeout_s, cycle = self._census.timeout_s, self.cycle
        answered = cycle is None or cycle.response_complete
        unsent = self._unsent()
        if unsent and (answered or self.flow.write_paused or self.transport.is_closing()):
            before, self._untaken = (
                self._untaken,
                unsent + _in_kernel(self.transport.get_extra_info("socket")),
            )
            if before - self._untaken >= DOWN_BYTES_PER_S * timeout_s / LOOKS:
                self._since = now
            return timeout_s
        if answered:
            return timeout_s if cycle is None or self._in_head else max(timeout_s, self.timeout_keep_alive)
        if not cycle.more_body or self.flow.read_paused:  # it is our turn
            self._since = now
        return timeout_s + self._received / UP_BYTES_PER_S

    def _unsent(self) -> int:
        """Bytes of answers that the kernel has not taken yet."""
        size: int = self.transport.get_write_buffer_size()
        return size

    def _refuse(self, refusal: Refusal) -> None:
        if not self.transport.is_closing():
            self.transport.write(_wire(refusal))
            self.transport.close()


def _in_kernel(connection: Any) -> int:
    """Bytes written that the other side has not acknowledged; its buffer there is emptied in large steps only."""
    try:
        return int.from_bytes(ioctl(connection.fileno(), TIOCOUTQ, bytes(4)), byteorder)
    except OSError:  # a system that does not count them
        return 0


def _answer(refusal: Refusal, scope: Scope) -> Response:
    headers = {"Connection": "close"}
    if refusal.status in (429, 503):
        headers["Retry-After"] = "5"
    return problem(scope, refusal.status, refusal.code, refusal.detail, headers=headers)


def _wire(refusal: Refusal) -> bytes:
    """The whole answer as it goes over the socket."""
    answer = _answer(refusal, {"state": {"request_id": f"req_{uuid7().hex}"}})
    lines = [f"HTTP/1.1 {refusal.status} {refusal.code}".encode()]
    lines += [name + b": " + value for name, value in answer.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(answer.body)])


async def _head_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    scope.setdefault("state", {})["request_id"] = f"req_{uuid7().hex}"
    await _answer(LARGE_HEAD, scope)(scope, receive, send)
