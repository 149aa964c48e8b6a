"""The guard: whatever URL a user gives, a server on loopback that nobody vouched for gets no connection."""

import gzip
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from jobs.outbound import MAX_BODY, Outbound, system_resolve
from jobs.outbound_urls import OutboundError, is_public, parse
from tests.jobs.hostile_urls import NAMES, URLS

PATIENCE_S = 60.0
Handler = Callable[[socket.socket], None]


@contextmanager
def listening(handler: Handler, *, context: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[str]]]:
    """A real server on 127.0.0.1 and, on the same port, ::1; its port, and who has connected."""
    seen: list[str] = []
    four = socket.create_server(("127.0.0.1", 0))
    port = four.getsockname()[1]
    servers = [four]
    with suppress(OSError):  # a machine without IPv6
        servers.append(socket.create_server(("::1", port), family=socket.AF_INET6))

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, peer = server.accept()
            except OSError:
                return
            seen.append(str(peer))
            with suppress(OSError), connection:
                handler(connection if context is None else context.wrap_socket(connection, server_side=True))

    for server in servers:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
    try:
        yield port, seen
    finally:
        for server in servers:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()


def saying(*chunks: bytes) -> Handler:
    def handler(connection: socket.socket) -> None:
        said = b""
        while not said.endswith(b"\r\n\r\n{}"):  # all of it: closing with bytes unread resets the connection
            received = connection.recv(65_536)
            if not received:
                return
            said += received
        for chunk in chunks:
            connection.sendall(chunk)

    return handler


OK = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def hostile_names(host: str, port: int) -> list[str]:
    return NAMES[host] if host in NAMES else system_resolve(host, port)


def post(
    outbound: Outbound, url: str, *, timeout_s: float = PATIENCE_S, read: bool = True
) -> tuple[int, bytes]:
    answer = outbound.post(url, b"{}", {"Content-Type": "application/json"}, timeout_s=timeout_s, read=read)
    return answer.status, answer.body


def refused(outbound: Outbound, url: str, *, timeout_s: float = PATIENCE_S) -> OutboundError:
    with pytest.raises(OutboundError) as caught:
        post(outbound, url, timeout_s=timeout_s)
    return caught.value


def test_no_hostile_url_reaches_loopback() -> None:
    assert len(URLS) >= 150
    with listening(OK) as (port, seen):
        with closing(socket.create_connection(("127.0.0.1", port))):
            pass
        while not seen:
            time.sleep(0.01)
        seen.clear()  # the canary sings
        guard = Outbound(resolve=hostile_names, ports=(443, port))
        for pattern in URLS:
            url = pattern.replace("{port}", str(port))
            error = refused(guard, url)
            assert error.code in ("url_not_allowed", "host_not_allowed"), (url, error.code)
            assert "127.0.0.1" not in str(error)
            assert str(port) not in str(error)
        time.sleep(0.05)
        assert seen == []


def test_a_name_is_resolved_once() -> None:
    """DNS rebinding: the second question would be answered with 127.0.0.1."""
    asked: list[str] = []

    def flips(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["2606:4700::1111"] if len(asked) == 1 else ["127.0.0.1"]

    with listening(OK) as (port, seen):
        error = refused(Outbound(resolve=flips, ports=(port,)), f"https://flips.test:{port}/", timeout_s=0.5)
        assert error.code in ("connect_failed", "timeout")
        assert asked == ["flips.test"]
        assert seen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int) -> None:
    with listening(OK) as (canary, seen):
        answer = f"HTTP/1.1 {status} Go\r\nLocation: http://127.0.0.1:{canary}/\r\nContent-Length: 0\r\n\r\n"
        with listening(saying(answer.encode())) as (port, _):
            assert post(Outbound([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/") == (status, b"")
        assert seen == []


def test_the_environment_sends_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(OK) as (proxy, seen), listening(OK) as (port, _):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        assert post(Outbound([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/") == (200, b"ok")
        assert seen == []


def test_an_operator_vouches_for_a_host_and_port_and_nothing_else() -> None:
    with listening(OK) as (port, seen), listening(OK) as (other, others):
        guard = Outbound([f"LocalHost:{port}"])
        assert post(guard, f"http://localhost:{port}/hook?a=b") == (200, b"ok")
        assert len(seen) == 1
        for url in (f"http://localhost:{other}/", f"http://127.0.0.1:{port}/", f"http://[::1]:{port}/"):
            refused(guard, url)
        assert post(Outbound(["localhost"]), f"http://localhost:{other}/") == (200, b"ok")
        assert (len(seen), len(others)) == (1, 1)


def dripping(connection: socket.socket) -> None:
    connection.recv(65_536)
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: drip\r\n" * 10_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def endless(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x" * 65_536)


BOMB = gzip.compress(b"0" * 10_000_000)


@pytest.mark.parametrize(
    ("handler", "code", "timeout_s"),
    [
        (dripping, "timeout", 0.5),  # of some 40 minutes
        (endless, "too_large", PATIENCE_S),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", BOMB), "bad_response", PATIENCE_S),
        (saying(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"), "bad_response", PATIENCE_S),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000), "bad_response", PATIENCE_S),
        (saying(b"SSH-2.0-OpenSSH\r\n"), "bad_response", PATIENCE_S),
        (saying(b""), "bad_response", PATIENCE_S),
    ],
    ids=["drip", "endless", "gzip bomb", "short", "headers", "ssh", "silence"],
)
def test_a_hostile_answer_ends_in_time(handler: Handler, code: str, timeout_s: float) -> None:
    """What lasts longer than its time is a `timeout`: anything else ended before."""
    with listening(handler) as (port, _):
        guard = Outbound([f"127.0.0.1:{port}"])
        error = refused(guard, f"http://127.0.0.1:{port}/", timeout_s=timeout_s)
        assert error.code == code
        assert str(port) not in str(error)


def test_an_answer_of_the_largest_size_is_read() -> None:
    body = b"x" * MAX_BODY
    with listening(saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_BODY, body)) as (port, _):
        assert post(Outbound([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/") == (200, body)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of its own for hook.test; key and certificate in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=hook.test "
        "-addext subjectAltName=DNS:hook.test -keyout key.pem -out cert.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


def test_tls_is_checked_against_the_name_of_the_url(certificate: Path) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate)
    names: list[str | None] = []
    serving.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))

    def loopback(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    with listening(OK, context=serving) as (port, _):
        allow = [f"hook.test:{port}", f"other.test:{port}"]
        guard = Outbound(allow, resolve=loopback, ssl_context=trusting)
        assert post(guard, f"https://hook.test:{port}/") == (200, b"ok")
        assert names == ["hook.test"]
        assert refused(guard, f"https://other.test:{port}/").code == "tls_failed"
        assert refused(Outbound(allow, resolve=loopback), f"https://hook.test:{port}/").code == "tls_failed"


def test_public_addresses_are_those_that_hold_no_other() -> None:
    assert all(map(is_public, ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001::5"]))
    assert not any(map(is_public, ["::ffff:1.1.1.1", "2002:101:101::", "64:ff9b::101:101", "no address", ""]))


def test_what_is_checked_is_what_is_asked() -> None:
    target = parse("https://Hook.Test:443?a=b")
    assert target == ("https", "hook.test", 443, "/?a=b")
    assert target.authority == "hook.test"
    assert parse("https://[2606:4700:0::1111]:8443/x").authority == "[2606:4700::1111]:8443"
