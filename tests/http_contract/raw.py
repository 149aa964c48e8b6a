"""`python -m tests.http_contract.raw --cases 20000 [--seed N]`: bytes that no generator of requests would send.

Each case is one connection of its own: a request line, headers and a body, each possibly broken, and what comes
back until the server closes or has answered. Never a 5xx, never more than 2 KB for a refusal, never an echo of the
canary that every case carries, and the server goes on serving. The last line is a JSON object with the tally.
"""

import argparse
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from api.problems import MAX_BYTES
from tests.http_contract.served import Served, served
from tests.http_contract.server import PPO, SCORE

CANARY = b"canary-7f3a"
PAUSE_S, PATIENCE_S = 0.3, 60.0
SCORES = {"input": [{"prompt": "a", "completion": "bc"}, "two"], "reward": [1, 2], "beta": 0.1}
DIVERGENCES = {"policy_logprobs": [-1.0, -0.5], "reference_logprobs": [-1.5, -0.25]}
BODIES: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/jobs": (PPO, SCORE),
    "/v1/scores": (SCORES,),
    "/v1/scores/stream": (SCORES,),
    "/v1/tokenize": ({"input": ["ab", "日本"], "offsets": "utf16"},),
    "/v1/detokenize": ({"input": [[97, 98], [230]], "offsets": "codepoint"},),
    "/v1/divergences": (DIVERGENCES,),
}
VALUES = (
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"1e-999",
        b"7" * 5000,
        b"18446744073709551616",
        b"-0",
        b"01",
    ),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff\xfe"', b'"\x00"', b'"\\u0000"', b'"' + b"a" * 70_000 + b'"'),
    *(
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'"' + CANARY + b'"',
        b"",
        b"//",
        b"'x'",
    ),
    *('"e\u0301\u202e\u200d🏳️‍🌈"'.encode(), b'"' + "ﷺ".encode() * 500 + b'"', b"[" + b"0," * 40_000 + b"0]"),
)
TYPES = (
    *(
        b"application/json",
        b"application/json; charset=utf-16",
        b"text/plain",
        b"",
        b"application/xml",
        b"*/*",
    ),
    *(b"application/x-www-form-urlencoded", b"multipart/form-data", b"application/json\x00", b"A" * 9000),
)
FLOODS = (
    b"X-A: " + b"a" * 70_000 + b"\r\n",
    b"".join(b"X-%d: b\r\n" % i for i in range(2000)),
    b"X-Request-Id: " + b"z" * 500 + b"\r\n",
    b"Authorization: Bearer " + b"kl_" * 900 + b"\r\n",
    b"Authorization: Basic \xff\xff\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Expect: 100-continue\r\n",
    b"Host: evil.example\r\nHost: b\r\n",
    b"If-None-Match: " + b'"1",' * 900 + b"\r\n",
    b"Idempotency-Key: \xc3\xa9\r\n",
    b"Prefer: wait=-1\r\n",
    b"Range: bytes=" + b"0-1," * 900 + b"0-1\r\n",
    b": no name\r\n",
    b"no colon\r\n",
    b"Folded: a\r\n b\r\n",
)


class Case(NamedTuple):
    """What is sent, in pieces, and a name for the tally."""

    name: str
    pieces: Sequence[bytes]


def cases(server: Served, rng: random.Random) -> Callable[[], Case]:
    """Draws cases."""
    authority = urlsplit(server.url).netloc.encode()
    ids = [one.encode() for several in server.ids.values() for one in several]
    key = server.headers("owner")["Authorization"].encode()

    def head(method: bytes, target: bytes, *more: bytes) -> bytes:
        lines = [
            b"Host: " + authority,
            b"Authorization: " + key,
            b"X-Canary: " + CANARY,
            b"Connection: close",
        ]
        return b"%s %s HTTP/1.1\r\n%s\r\n" % (method, target, b"\r\n".join(lines)) + b"".join(more)

    def post(body: bytes, kind: bytes = b"application/json", *more: bytes) -> list[bytes]:
        length = b"Content-Length: %d\r\nContent-Type: %s\r\n" % (len(body), kind)
        path = rng.choice(list(BODIES)).encode()
        return [head(b"POST", path, length, *more) + b"\r\n" + body]

    def mutated() -> bytes:
        path = rng.choice(list(BODIES))
        body = bytearray(json.dumps(rng.choice(BODIES[path])).encode())
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(body))
            match rng.randrange(5):
                case 0:
                    body[at] = rng.randrange(256)
                case 1:
                    del body[at : at + rng.randrange(1, 12)]
                case 2:
                    body[at:at] = rng.choice(VALUES)[:4000]
                case 3:
                    other = rng.randrange(len(body))
                    body[at:at] = body[min(at, other) : max(at, other)]
                case _:
                    del body[at:]
            body = body or bytearray(b"x")
        return bytes(body)

    def replaced() -> bytes:
        """A valid body with one of its values replaced."""
        body = json.dumps(rng.choice(BODIES[rng.choice(list(BODIES))]), separators=(",", ":")).encode()
        spots = [at for at, byte in enumerate(body) if byte in b":,["]
        at = rng.choice(spots) + 1
        end = next((i for i in range(at, len(body)) if body[i] in b",]}"), len(body))
        return body[:at] + rng.choice(VALUES) + body[end:]

    def target() -> bytes:
        parts = [b"v1", b"jobs", rng.choice(ids), rng.choice([b"events", b"metrics", b"samples", b"results"])]
        parts = parts[: rng.randrange(1, 5)]
        noise = [
            b"..",
            b"%2e%2e",
            b"%00",
            b"\\",
            b"%ff",
            b"a" * 5000,
            b"%c0%ae",
            b";",
            b"%F0%9F%98%80",
            CANARY,
        ]
        parts[rng.randrange(len(parts))] += rng.choice(noise)
        query = rng.choice(
            [
                b"",
                b"?limit=1e9",
                b"?after=%00",
                b"?limit=" + b"9" * 5000,
                b"?after=%ff&after=1",
                b"?" + CANARY,
            ]
        )
        return b"/" + b"/".join(parts) + query

    def chunked() -> list[bytes]:
        body = json.dumps(SCORES).encode()
        start = head(
            b"POST", b"/v1/scores", b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        lie = rng.choice(
            [
                b"%x" % len(body),
                b"%x" % (len(body) - 3),
                b"ffffffffffffffff",
                b"-1",
                b"zz",
                b"0x10",
                b"%x;ext=" % len(body),
            ]
        )
        return [start, lie + b"\r\n" + body + b"\r\n", b"0\r\n\r\n"]

    def lengths() -> list[bytes]:
        body = json.dumps(DIVERGENCES).encode()
        length = rng.choice(
            [b"-1", b"1e3", b"99999999999999999999", b"0", b"5, 5", b" 7", b"%d" % (len(body) - 2)]
        )
        more = b"Content-Length: %s\r\nContent-Type: application/json\r\n\r\n" % length
        return [head(b"POST", b"/v1/divergences", more) + body]

    def get(*more: bytes) -> list[bytes]:
        return [
            head(
                rng.choice([b"GET", b"GET", b"HEAD", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"FOO"]),
                target(),
                b"Connection: close\r\n",
                *more,
            )
            + b"\r\n"
        ]

    kinds: dict[str, Callable[[], list[bytes]]] = {
        "mutated body": lambda: post(mutated()),
        "replaced value": lambda: post(replaced()),
        "media type": lambda: post(mutated(), rng.choice(TYPES)),
        "target": get,
        "header": lambda: rng.choice([get, lambda *more: post(mutated(), b"application/json", *more)])(
            rng.choice(FLOODS)
        ),
        "chunked": chunked,
        "content length": lengths,
        "no http": lambda: [rng.randbytes(rng.randrange(1, 400)) + b"\r\n\r\n"],
        "cut off": lambda: [post(mutated())[0][: rng.randrange(1, 300)]],
    }
    weights = [6, 6, 2, 4, 3, 1, 1, 1, 1]

    def draw() -> Case:
        (name,) = rng.choices(list(kinds), weights)
        return Case(name, kinds[name]())

    return draw


def answer_to(address: tuple[str, int], case: Case) -> bytes:
    """All that comes back; after a pause we say that nothing more will come, which ends what waits for more."""
    received = bytearray()
    with socket.create_connection(address, PAUSE_S) as connection:
        try:
            for piece in case.pieces:
                connection.sendall(piece)
            with suppress(TimeoutError):
                receive(connection, received)
                return bytes(received)
            connection.settimeout(PATIENCE_S)
            connection.shutdown(socket.SHUT_WR)
            receive(connection, received)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it need not listen to the end
    return bytes(received)


def receive(connection: socket.socket, into: bytearray) -> None:
    """Until the server closes."""
    while part := connection.recv(65_536):
        into += part


def wrong(answer: bytes) -> str | None:
    """What must not be, in the answer to anything."""
    if not answer:
        return None
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status >= 500:
        return f"a {status}"
    if status >= 400 and len(body) > MAX_BYTES:
        return f"{len(body)} bytes with a {status}"
    if status >= 400 and CANARY in answer:
        return "an echo"
    return None


def run(server: Served, *, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """The tally of `count` cases by kind and status, and what was wrong, with the case's number."""
    draw, tally, found = cases(server, random.Random(seed)), Counter[str](), list[str]()
    parts = urlsplit(server.url)
    address = (parts.hostname or "", parts.port or 0)
    for number in range(count):
        case = draw()
        answer = answer_to(address, case)
        status = answer.split()[1].decode() if answer else "closed"
        tally[f"{case.name}: {status}"] += 1
        if verdict := wrong(answer):
            where = f"case {number} of seed {seed} ({case.name})"
            found.append(f"{where}: {verdict}\n  {case.pieces[0][:300]!r}\n  {answer[:300]!r}")
    return tally, found


def main() -> int:
    """As many cases as asked for, on one server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with served() as server:
        tally, found = run(server, count=given.cases, seed=given.seed)
    for line in found[:20]:
        sys.stdout.write(line + "\n")
    told = {
        "seed": given.seed,
        "cases": given.cases,
        "wrong": len(found),
        "tally": dict(sorted(tally.items())),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
