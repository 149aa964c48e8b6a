"""`python -m tests.api.slow_clients [--each 20]`

So many clients of each slow kind at once hold a real API with its default timeouts, while a client polls a job's
document as fast as it is answered. Each of the slow ones must be dropped within 15 s of when it began to be slow,
and the polls must go on. The last line is one JSON object; the exit status is 1 if a bound was broken.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from jobs.schema import metadata
from jobs.settings import Settings
from jobs.spec import JOB_SPEC
from jobs.sql_store import SqlStore
from tests.api.serving import serving

DROPPED_WITHIN_S = 15.0
POLL_P99_S, POLL_MOST_S = 0.1, 1.0
DRIP_EVERY_S = 0.25
GIVE_UP_S = 30.0
JOB = "job_" + "1" * 32
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/divergences HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 64  # more than buffers hold


class Kind(NamedTuple):
    """`first` is sent at once, then `drip(turn)` four times a second; so often are `reads` bytes taken."""

    first: bytes
    drip: Callable[[int], bytes] = lambda _: b""
    reads: int = 65_536
    answered: bool = False  # there is a first answer, from which on the time counts


KINDS = {
    "silent": Kind(b""),
    "blank lines": Kind(b"", lambda _: b"\r\n"),
    "headers": Kind(GET, lambda turn: b"X-%d: a\r\n" % turn),
    "one header": Kind(GET + b"X: ", lambda _: b"a"),
    "body": Kind(POST + b"Content-Length: 1000\r\n\r\n{", lambda _: b" "),
    "chunks": Kind(POST + b"Transfer-Encoding: chunked\r\n\r\n", lambda _: b"1\r\n \r\n"),
    "blank lines after an answer": Kind(GET + b"\r\n", lambda _: b"\r\n", answered=True),
    "headers after an answer": Kind(
        GET + b"\r\n", lambda turn: GET if turn == 0 else b"X-%d: a\r\n" % turn, answered=True
    ),
    "unread answers": Kind(LARGE, reads=0),
    "answers read a byte at a time": Kind(LARGE, reads=1),
}


class Server(NamedTuple):
    """Where it listens, and which process it is."""

    address: tuple[str, int]
    pid: int

    def connections(self) -> set[int]:
        """The clients' ports of those that the process still holds (what the kernel still sends is no matter)."""
        mine = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                mine.add(os.readlink(link))
        rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        here = f":{self.address[1]:04X}"
        return {
            int(row[2][-4:], 16) for row in rows if row[1].endswith(here) and f"socket:[{row[9]}]" in mine
        }


class Crowd:
    """The slow clients: when each began to be slow, and how long the server held it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.began: dict[int, float] = {}
        self.held_s: dict[int, float] = {}

    async def watch(self) -> None:
        """Until all that have begun have been dropped, or nobody waits any longer."""
        give_up_at, seen = time.monotonic() + GIVE_UP_S, set[int]()
        while time.monotonic() < give_up_at:
            held, now = self.server.connections(), time.monotonic()
            seen |= held
            for port, began in list(self.began.items()):
                if port in seen and port not in held:  # at first the kernel has it, and not yet the process
                    self.held_s.setdefault(port, now - began)
            await asyncio.sleep(0.1)

    async def slow(self, kind: Kind) -> float:
        """Seconds until the server let go of it; GIVE_UP_S if it never did."""
        loop, connection = asyncio.get_running_loop(), socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        with closing(connection):
            await loop.sock_connect(connection, self.server.address)
            port = connection.getsockname()[1]
            with suppress(OSError):
                await loop.sock_sendall(connection, kind.first)
                if kind.answered:
                    await loop.sock_recv(connection, 65_536)
            self.began[port] = began = time.monotonic()
            for turn in range(int(GIVE_UP_S / DRIP_EVERY_S)):
                if port in self.held_s or time.monotonic() > began + GIVE_UP_S:
                    break
                with suppress(OSError):  # it is the server's side that says whether it is over
                    connection.send(kind.drip(turn))
                    if kind.reads:
                        connection.recv(kind.reads)
                await asyncio.sleep(DRIP_EVERY_S)
            return self.held_s.get(port, GIVE_UP_S)


async def poll(address: tuple[str, int], path: str, over: asyncio.Event) -> list[float]:
    """Seconds of each answer, on one connection."""
    took = []
    reader, writer = await asyncio.open_connection(*address)
    while not over.is_set():
        began = time.monotonic()
        writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
        took.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    writer.close()
    return sorted(took)


async def crowded(server: Server, path: str, each: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds by kind, and those of the polls meanwhile."""
    done, crowd = asyncio.Event(), Crowd(server)
    polls = asyncio.create_task(poll(server.address, path, done))
    watch = asyncio.create_task(crowd.watch())
    ended = await asyncio.gather(*(crowd.slow(kind) for kind in KINDS.values() for _ in range(each)))
    done.set()
    watch.cancel()
    found = {name: sorted(ended[at * each : (at + 1) * each]) for at, name in enumerate(KINDS)}
    return found, await polls


def measured(each: int) -> dict[str, object]:
    """What `main` prints."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models.json").write_text("{}")
        database = f"sqlite:///{folder}/kleash.db"
        with closing(SqlStore(database)) as store:
            metadata.create_all(store.engine)
            spec = JOB_SPEC.validate_python({"type": "score", "config": {"items": ["a"]}})
            store.create_job(JOB, "local", spec, {})
        settings = Settings(database_url=SecretStr(database), models_file=folder / "models.json")
        with serving(settings, folder) as (url, _, process):
            host, port = url.removeprefix("http://").split(":")
            ended, polls = asyncio.run(
                crowded(Server((host, int(port)), process.pid), f"/v1/jobs/{JOB}", each)
            )
    seconds = {name: round(found[-1], 1) for name, found in ended.items()}
    p50, p99, most = (polls[int(share * (len(polls) - 1))] for share in (0.5, 0.99, 1))
    faults = [f"{name}: {took} s" for name, took in seconds.items() if took > DROPPED_WITHIN_S]
    faults += [f"poll p99 {p99:.3f} s"] if p99 > POLL_P99_S else []
    faults += [f"poll {most:.3f} s"] if most > POLL_MOST_S else []
    told: dict[str, object] = {"each": each, "dropped_after_s": seconds, "polls": len(polls)}
    told |= {
        f"poll_{key}_ms": round(1000 * took, 1) for key, took in (("p50", p50), ("p99", p99), ("max", most))
    }
    return told | {"violations": faults}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.api.slow_clients")
    parser.add_argument("--each", type=int, default=20)
    told = measured(parser.parse_args().each)
    sys.stdout.write(json.dumps(told) + "\n")
    return 1 if told["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
