"""The same pair behind `kleash up`: real API and scorer processes, and clients that ask them.

While the servers answer, the threads of this process sleep, and the other way round: in the environment of both
(`kleash.up.QUIET`) an idle thread does not spin. What the servers use while it is not their turn is printed.
"""

import contextlib
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.scoring.contenders import Answers
from benchmarks.scoring.models import Models, write_registry
from benchmarks.scoring.workloads import Text
from benchmarks.service import PATIENCE_S, cpu_s, marked, running


class Stack:
    """A running `kleash up`."""

    def __init__(self, url: str, data: Path) -> None:
        self.address = urlsplit(url).netloc
        self._processes = list(marked(f"KLEASH_DATA={data}"))
        self._rested: tuple[float, float] | None = None  # when, and what it had used of the CPU by then
        self._busiest_rest = 0.0  # cores used while others had their turn
        self._turned_away = 0  # 503s with a Retry-After, which clients obey

    def __str__(self) -> str:
        return (
            f"servers: {self._turned_away} requests sent again after a 503, "
            f"{self._busiest_rest:.2f} cores at most while others had their turn"
        )

    def ask(self, texts: Sequence[Text], *, concurrency: int, per_token: bool = True) -> Answers:
        """One request for each text, so many of them at a time; exact KL."""
        self._end_of_rest()
        bodies = [
            json.dumps({"input": text.string, "quantities": ["kl"], "per_token": per_token}) for text in texts
        ]
        found: dict[int, bytes] = {}
        todo = iter(enumerate(bodies))
        clients = [
            threading.Thread(target=self._client, args=(todo, found))
            for _ in range(min(concurrency, len(texts)))
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        self._rested = time.monotonic(), self._cpu_seconds()
        if len(found) < len(texts):
            raise RuntimeError("a request over HTTP failed")
        if not per_token:
            return {}
        answers = [json.loads(found[index])["data"][0]["tokens"]["kl"] for index in range(len(texts))]
        return {"kl": [np.array(kl[1:], dtype=np.float32) for kl in answers]}

    def _end_of_rest(self) -> None:
        if self._rested is not None and (rest := time.monotonic() - self._rested[0]) > 1:
            used = self._cpu_seconds() - self._rested[1]
            self._busiest_rest = max(self._busiest_rest, used / rest)

    def _cpu_seconds(self) -> float:
        return sum(map(cpu_s, self._processes))

    def _client(self, todo: Iterator[tuple[int, str]], found: dict[int, bytes]) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            for index, body in todo:
                found[index] = self._post(connection, body)

    def _post(self, connection: http.client.HTTPConnection, body: str) -> bytes:
        while True:
            connection.request("POST", "/v1/scores", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            if response.status == http.HTTPStatus.OK:
                return content
            wait = response.headers["Retry-After"]
            if response.status != http.HTTPStatus.SERVICE_UNAVAILABLE or not wait:
                raise RuntimeError(f"{response.status}: {content.decode()}")
            self._turned_away += 1
            time.sleep(float(wait))


@contextlib.contextmanager
def stack(models: Models) -> Iterator[Stack]:
    """Start it, wait until the pair is loaded, end it."""
    with (
        tempfile.TemporaryDirectory(prefix="kleash-bench-") as folder,
        running(write_registry(models, Path(folder)), "--unsafe-no-auth") as (url, data),
    ):
        yield Stack(url, data)
