"""The HTTP client for URLs that users give us: webhooks and rewards. It reaches nothing that is not public.

https on port 443 to hosts all of whose addresses are public; what the operator lists in KLEASH_OUTBOUND_ALLOW may
be plain http, on another port, private. The name is resolved once and the connection goes to one of those
addresses, so that a name that changes its mind (DNS rebinding) gains nothing. There is no redirect, proxy,
cookie, compression or environment: this is httpcore, and a parser of our own (jobs/outbound_urls.py).
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

import httpcore2
import httpx2

from jobs.outbound_urls import Allowed, OutboundError, Target, allowed_hosts, is_public, parse

MAX_BODY = 65_536
CONNECT_S = 5.0
MOST_ADDRESSES = 4
WRITE_CHUNK = 16_384
UNREACHABLE = "the URL's host has no public address"  # whether a private name exists is nobody's business

Resolve = Callable[[str, int], list[str]]  # host, port -> addresses; raises OSError


class Answer(NamedTuple):
    """What came back. `body` is for our own parsers only: never show it, quote it or log it."""

    status: int
    retry_after: str | None
    body: bytes


def system_resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class Outbound:
    """The client; it keeps no connection and may be used by many threads."""

    def __init__(
        self,
        allow: Iterable[str] = (),
        *,
        resolve: Resolve = system_resolve,
        ssl_context: ssl.SSLContext | None = None,
        ports: Collection[int] = (443,),
    ) -> None:
        self._allow, self._resolve, self._ssl = allowed_hosts(allow), resolve, ssl_context
        self._ports = ports

    def check(self, url: str) -> Target:
        """What the URL means, if its form allows a request; asks no network. Raises OutboundError."""
        target = parse(url)
        if self._vouched_for(target):
            return target
        if target.scheme != "https" or target.port not in self._ports:
            raise OutboundError("url_not_allowed", "the URL must be https, on port 443")
        if not _maybe_public(target.host):
            raise OutboundError("host_not_allowed", UNREACHABLE)
        return target

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, read: bool = False
    ) -> Answer:
        """Send `body`; the answer's own body is read only on request, and up to MAX_BODY.

        Raises:
            OutboundError: url_not_allowed, host_not_allowed, connect_failed, tls_failed, timeout, bad_response,
                too_large.
        """
        target, deadline = self.check(url), time.monotonic() + timeout_s
        backend = _Pinned(target, self._addresses(target, deadline), deadline)
        all_headers = {
            "Host": target.authority,
            "Accept-Encoding": "identity",
            "Connection": "close",
            **headers,
        }
        all_headers["Content-Length"] = str(len(body))
        request = httpcore2.Request(
            "POST",
            httpcore2.URL(
                scheme=target.scheme.encode(),
                host=target.host.encode(),
                port=target.port,
                target=target.path.encode(),
            ),
            headers=[(name.encode(), value.encode()) for name, value in all_headers.items()],
            content=body,
            extensions={
                "timeout": {"connect": CONNECT_S, "read": timeout_s, "write": timeout_s, "pool": 1.0}
            },
        )
        try:
            with httpcore2.ConnectionPool(
                ssl_context=self._context(), network_backend=backend, http2=False, max_connections=1
            ) as pool:
                response = pool.handle_request(request)
                try:
                    return _answer(response, read=read)
                finally:
                    response.close()
        except httpcore2.TimeoutException:
            raise OutboundError("timeout", f"no answer within {timeout_s:g} s") from None
        except httpcore2.ConnectError as error:
            raise _connect_error(error) from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError):
            raise OutboundError("bad_response", "the answer was not HTTP, or broke off") from None

    def _context(self) -> ssl.SSLContext:
        if self._ssl is None:
            self._ssl = httpx2.create_ssl_context(trust_env=False)
        return self._ssl

    def _vouched_for(self, target: Target) -> bool:
        return not self._allow.isdisjoint({Allowed(target.host, target.port), Allowed(target.host, None)})

    def _addresses(self, target: Target, deadline: float) -> list[str]:
        """Resolved once. Raises OutboundError unless every one is public, or the operator vouches for the host."""
        addresses = _within(deadline, lambda: self._resolve(target.host, target.port))
        if not addresses or not (self._vouched_for(target) or all(map(is_public, addresses))):
            raise OutboundError("host_not_allowed", UNREACHABLE)
        return addresses[:MOST_ADDRESSES]


def _maybe_public(host: str) -> bool:
    """False for the literal of an address that is not public; names are decided when they are resolved."""
    literal = ":" in host or host.rpartition(".")[2].isdigit()
    return not literal or is_public(host)


def _within(deadline: float, resolve: Callable[[], list[str]]) -> list[str]:
    """Resolve in a thread: the system's resolver knows no deadline. No addresses for a name that has none."""
    found: list[str] = []

    def ask() -> None:
        with suppress(OSError, UnicodeError):
            found.extend(resolve())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(0.0, min(CONNECT_S, deadline - time.monotonic())))
    return [] if thread.is_alive() else found


def _connect_error(error: httpcore2.ConnectError) -> OutboundError:
    if isinstance(error.__cause__ or error.__context__, ssl.SSLError):
        return OutboundError("tls_failed", "TLS failed: the certificate must be valid for the URL's host")
    return OutboundError("connect_failed", "no connection to the URL's host")


def _answer(response: httpcore2.Response, *, read: bool) -> Answer:
    headers = {name.lower(): value for name, value in response.headers}
    retry_after = headers.get(b"retry-after", b"").decode("latin-1")[:64] or None
    body = b""
    if read:
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise OutboundError("bad_response", "the answer must not be compressed")
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise OutboundError("too_large", f"the answer has more than {MAX_BODY} bytes")
    return Answer(response.status, retry_after, body)


class _Pinned(httpcore2.NetworkBackend):
    """Connects to the addresses that were checked, and to nothing else, before the deadline."""

    def __init__(self, target: Target, addresses: list[str], deadline: float) -> None:
        self._target, self._addresses, self._deadline = target, addresses, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """To the first address that takes it."""
        assert (host, port) == (self._target.host, self._target.port)
        failed: Exception = httpcore2.ConnectError("no address")
        for address in self._addresses:
            try:
                stream = httpcore2.SyncBackend().connect_tcp(address, port, self._left(timeout))
                return _Timed(stream, self._left)
            except httpcore2.ConnectError as error:
                failed = error
        raise failed

    def _left(self, timeout: float | None) -> float:
        """Never more than what is left of the whole. Raises ReadTimeout when nothing is."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout
        return left if timeout is None else min(left, timeout)


class _Timed(httpcore2.NetworkStream):
    """A stream all of whose operations end before one deadline: an answer that drips does not outlast it."""

    def __init__(self, stream: httpcore2.NetworkStream, left: Callable[[float | None], float]) -> None:
        self._stream, self._left = stream, left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See httpcore2."""
        return self._stream.read(max_bytes, self._left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See httpcore2."""
        for start in range(0, len(buffer), WRITE_CHUNK):
            self._stream.write(buffer[start : start + WRITE_CHUNK], self._left(timeout))

    def close(self) -> None:
        """See httpcore2."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """See httpcore2."""
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, self._left(timeout)), self._left)

    def get_extra_info(self, info: str) -> object:
        """See httpcore2."""
        return self._stream.get_extra_info(info)
