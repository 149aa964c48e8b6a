"""Slow, greedy and lying clients over real sockets: each is dropped in time, while others are served."""

import asyncio
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpx2
import pytest
import uvicorn
from pydantic import SecretStr

from api.__main__ import server_config
from api.connections import MAX_HEADERS, Census
from api.problems import MAX_BYTES
from api.schemas import Problem
from jobs.schema import metadata
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api import slow_clients
from tests.api.serving import serving

TIMEOUT_S = 1.5  # more than a busy machine keeps an honest client from sending
DROPPED_AFTER_S = 1.25 * TIMEOUT_S  # a quarter may pass unnoticed
SLACK_S = 60.0  # for a busy machine; `slow` itself goes on for longer
MOST = 60
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/divergences HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The address of a real API with a small timeout."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "models.json").write_text("{}")
    url = f"sqlite:///{folder}/kleash.db"
    with closing(SqlStore(url)) as store:
        metadata.create_all(store.engine)
    settings = Settings(database_url=SecretStr(url), models_file=folder / "models.json")
    env = {"KLEASH_CLIENT_TIMEOUT_S": str(TIMEOUT_S), "KLEASH_MAX_CONNECTIONS": str(MOST)}
    with serving(settings, folder, **env) as (url, _, _):
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


def exchange(server: tuple[str, int], content: bytes) -> bytes:
    """All that the server says until it closes."""
    with socket.create_connection(server, timeout=60) as connection:
        with suppress(ConnectionError):  # refused before it has sent all of it
            connection.sendall(content)
        return drained(connection)


def drained(connection: socket.socket) -> bytes:
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"content-type: application/problem+json" in head
    assert len(answer) < MAX_BYTES + 512
    problem = Problem.model_validate_json(body, extra="forbid")
    assert (problem.status, problem.code) == (status, code)


class Polls(threading.Thread):
    """Asks for /health on one connection, without a pause, and keeps the seconds that each took."""

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__()
        self.url, self.stop, self.took = f"http://{server[0]}:{server[1]}", threading.Event(), list[float]()

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, trust_env=False, timeout=60) as client:
            while not self.stop.wait(0.01):
                began = time.monotonic()
                assert client.get("/health").status_code == 200
                self.took.append(time.monotonic() - began)


def test_slow_clients_are_dropped_in_time_while_polls_are_answered(server: tuple[str, int]) -> None:
    polls = Polls(server)
    polls.start()
    endings: dict[str, list[tuple[float, bytes]]] = {}

    def slow(name: str, first: bytes, drip: Callable[[int], bytes]) -> None:
        began = time.monotonic()  # the server may have accepted before this thread goes on
        with socket.create_connection(server, timeout=60) as connection:
            try:
                connection.sendall(first)
                for turn in range(2000):
                    connection.sendall(drip(turn))
                    connection.settimeout(0.05)
                    try:
                        if not (said := connection.recv(65_536)):
                            break
                        endings.setdefault(name, []).append((time.monotonic() - began, said))
                        return
                    except TimeoutError:
                        continue
            except OSError:
                pass
            endings.setdefault(name, []).append((time.monotonic() - began, b""))

    kinds: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
        "silent": (b"", lambda _: b""),
        "blank lines": (b"", lambda _: b"\r\n"),
        "head": (GET, lambda turn: b"X-%d: a\r\n" % turn if turn < 50 else b""),
        "one header": (GET + b"X: ", lambda _: b"a"),
        "body": (POST + b"Content-Length: 1000\r\n\r\n{", lambda _: b" "),
        "chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", lambda _: b"1\r\n \r\n"),
        "a chunk's extension": (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", lambda _: b"x"),
    }
    threads = [
        threading.Thread(target=slow, args=(name, *kind)) for name, kind in kinds.items() for _ in "12345"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    polls.stop.set()
    polls.join()
    assert {name: len(found) for name, found in endings.items()} == dict.fromkeys(kinds, 5)
    for name, found in endings.items():
        for seconds, said in found:
            assert 0.9 * TIMEOUT_S < seconds < DROPPED_AFTER_S + SLACK_S, name
            if said:
                refused(said, 408, "request_timeout")
    assert sorted(polls.took)[len(polls.took) // 2] < TIMEOUT_S / 2


@pytest.mark.skipif("KLEASH_SOAK" not in os.environ, reason="it measures times: KLEASH_SOAK=1")
def test_the_default_timeouts_drop_every_slow_client_within_15_seconds() -> None:
    told = slow_clients.measured(20)
    assert told["violations"] == [], told


def test_what_arrives_fast_enough_is_answered_however_small_its_pieces(server: tuple[str, int]) -> None:
    body = json.dumps({"policy": {"probs": [0.5, 0.5]}, "reference": {"probs": [0.4, 0.6]}})
    whole = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body.encode())
    with socket.create_connection(server, timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(whole)):
            connection.sendall(whole[at : at + 1])
        assert drained(connection).startswith(b"HTTP/1.1 200")


def test_heads_have_limits(server: tuple[str, int]) -> None:
    many = b"".join(b"X-%d: a\r\n" % i for i in range(1000))
    refused(exchange(server, GET + many + b"\r\n"), 431, "headers_too_large")
    for size in (20_000, 2_000_000):
        refused(exchange(server, GET + b"X: " + b"a" * size + b"\r\n\r\n"), 431, "headers_too_large")
    path = b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    refused(exchange(server, path), 431, "headers_too_large")
    allowed = b"".join(b"X-%d: a\r\n" % i for i in range(MAX_HEADERS - 2))
    assert exchange(server, GET + allowed + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


LIES = {
    "length and chunks": b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "negative length": b"Content-Length: -1\r\n\r\n{}",
    "no number": b"Content-Length: 0x10\r\n\r\n{}",
    "endless length": b"Content-Length: 99999999999999999999999\r\n\r\n{}",
    "no chunk size": b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "chunk larger than it says": b"Transfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "endless chunk": b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
    "other encoding": b"Transfer-Encoding: gzip\r\n\r\n{}",
    "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": b"Content-Length : 2\r\n\r\n{}",
    "folded header": b"X: a\r\n b\r\n\r\n",
    "bare line feed": b"X: a\n\n",
    "NUL": b"X: \0\r\n\r\n",
    "more than it said": b"Content-Length: 2\r\n\r\n{}\x00\x01garbage",
    "less than it said": b"Content-Length: 20\r\n\r\n{}",
    "last chunk missing": b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
}


def test_lengths_that_lie_get_a_4xx_or_nothing(server: tuple[str, int]) -> None:
    for name, lie in LIES.items():
        answer = exchange(server, POST + lie)
        statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
        assert statuses, name
        assert all(400 <= status < 500 for status in statuses), (name, answer)
        assert len(answer) < 2 * MAX_BYTES + 1024


def test_trailers_are_no_headers(server: tuple[str, int]) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n"
    trailers = b"".join(b"X-%d: a\r\n" % i for i in range(1000))
    assert exchange(server, chunked + trailers + b"\r\n").startswith(b"HTTP/1.1 422")


def test_an_encoded_body_is_refused(server: tuple[str, int]) -> None:
    answer = exchange(
        server, POST + b"Content-Encoding: gzip\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    )
    refused(answer, 415, "unsupported_media_type")


def test_there_is_an_end_to_connections(server: tuple[str, int]) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(server, timeout=60)) for _ in range(MOST + 5)]
        answers = [drained(connection) for connection in held]
    said = [answer for answer in answers if answer]
    assert len(said) >= 5  # those before had said nothing, and were told nothing
    for answer in said:
        refused(answer, 503, "too_many_connections")
    assert exchange(server, GET + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_one_address_has_its_share_and_this_machine_has_none() -> None:
    census = Census(Settings(max_connections=10, max_connections_per_client=2))
    near, far = "127.0.0.1", "192.0.2.1"
    assert [census.enter(far, n) for n in (1, 2)] == [None, None]
    assert (greedy := census.enter(far, 3)) is not None
    assert (greedy.status, greedy.code) == (429, "too_many_connections")
    assert all(census.enter(near, n) is None for n in range(4, 10))
    census.leave(far)
    census.leave(far)
    assert census.enter(far, 5) is None
    full = census.enter(None, 11)
    assert full is not None
    assert full.status == 503


async def long_answers(scope: Any, receive: Any, send: Any) -> None:
    """`/wait` says nothing for a long time, `/events` little, `/large` 8 MB at once, `/stream` 20 MB in pieces."""
    kind = scope["path"]
    if kind == "/wait":
        await asyncio.sleep(3 * TIMEOUT_S)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(4 if kind == "/events" else 0):
        await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
        await asyncio.sleep(TIMEOUT_S)
    for _ in range({"/large": 1, "/stream": 20}.get(kind, 0)):
        size = 20_000_000 // (1 if kind == "/large" else 20)
        await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture(scope="module")
def long_server() -> Iterator[tuple[str, int]]:
    """The same connections around another application."""
    settings = Settings(client_timeout_s=TIMEOUT_S)
    config = server_config(long_answers, settings, port=0, lifespan="off", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield running.servers[0].sockets[0].getsockname()
    running.should_exit = True
    thread.join()


def ask(server: tuple[str, int], path: str) -> socket.socket:
    """A connection that has asked, and holds little that it has not read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    connection.settimeout(60)
    connection.connect(server)
    connection.sendall(b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path.encode())
    return connection


def test_long_answers_are_not_cut_and_who_does_not_read_is_dropped(long_server: tuple[str, int]) -> None:
    """Long polls, event streams that say little, and a reader who is slow but goes on: all stay."""
    with ExitStack() as stack:
        kept = {kind: stack.enter_context(ask(long_server, kind)) for kind in ("/large", "/wait", "/events")}
        idle = [stack.enter_context(ask(long_server, kind)) for kind in ("/large", "/stream")]
        dripping = [stack.enter_context(ask(long_server, kind)) for kind in ("/large", "/stream")]
        began, read = time.monotonic(), 0
        while time.monotonic() - began < 2 * DROPPED_AFTER_S:
            read += len(kept["/large"].recv(50_000))
            for connection in dripping:
                connection.recv(1)
            time.sleep(0.05)
        assert read < 10_000_000, "nothing was left to read slowly"
        for connection in kept.values():
            assert drained(connection).endswith(b"end\r\n0\r\n\r\n")
        for connection in (*idle, *dripping):
            assert len(drained(connection)) < 15_000_000  # what the kernel held
