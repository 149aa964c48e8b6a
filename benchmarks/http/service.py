"""What is measured: the API of a running `kleash up` with keys, limits and audit, and a bare FastAPI handler."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.service import marked, running
from kleash import Client

BARE = """
import sys
import uvicorn
from fastapi import FastAPI

app = FastAPI(docs_url=None, redoc_url=None)

@app.get("/")
async def constant():
    return {"status": "ok"}

uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning", server_header=False)
"""


class Service(NamedTuple):
    """Where it is and what one needs to ask it."""

    url: str
    key: str
    api: int  # the process that answers
    database: str  # its URL

    @property
    def authorization(self) -> dict[str, str]:
        """The header that every request carries."""
        return {"Authorization": f"Bearer {self.key}"}

    def client(self) -> Client:
        """A new one of our own clients."""
        return Client(self.url, self.key)


@contextlib.contextmanager
def service(registry: Path, prepare: Callable[[Path], None] | None = None) -> Iterator[Service]:
    """`kleash up`: one key, which may ask as often as it likes, SQLite, the scorer with the default pair."""
    with running(registry, prepare=prepare, KLEASH_REQUESTS_PER_MINUTE="0") as (url, data):
        processes = marked(f"KLEASH_DATA={data}")
        api = next(each for each in processes if b"\0-m\0api\0" in Path(f"/proc/{each}/cmdline").read_bytes())
        yield Service(url, (data / "key").read_text().strip(), api, f"sqlite:///{data}/kleash.db")


@contextlib.contextmanager
def bare() -> Iterator[tuple[str, int]]:
    """FastAPI that returns a constant: its URL and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", BARE, str(port)])
    url = f"http://127.0.0.1:{port}/"
    try:
        while True:
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError("the bare handler has not started") from None
                time.sleep(0.05)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()
