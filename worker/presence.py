"""A worker's row in the database, for people who ask who is there: written every few seconds, for nothing else.

The pool process writes it, in a thread of its own: a database that is away delays no job and no shutdown, and
Celery's main process, which forks, never holds a connection.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jobs.errors import StoreUnavailable
from jobs.store_workers import BEAT_S, WorkerCard, WorkerStore
from jobs.version import VERSION

PACKAGES = ("celery", "torch", "transformers")
FAREWELL_S = 1.0
log = logging.getLogger(__name__)


class Presence:
    """The thread. `open_store` is called in it."""

    def __init__(
        self, card: WorkerCard, open_store: Callable[[], WorkerStore], *, every_s: float = BEAT_S
    ) -> None:
        self._card, self._open_store, self._every_s = card, open_store, every_s
        self._over, self._heard = threading.Event(), True
        self._thread = threading.Thread(target=self._beat, name="presence", daemon=True)

    def start(self) -> None:
        """Appear, and from then on show signs of life."""
        self._thread.start()

    def stop(self) -> None:
        """Disappear, if the database lets us soon."""
        self._over.set()
        self._thread.join(FAREWELL_S)

    def _beat(self) -> None:
        parent = os.getppid()
        while os.getppid() == parent:  # of a worker that was killed the pool process may be left
            self._tell(lambda store: store.record_worker(self._card))
            if self._over.wait(self._every_s):
                self._tell(lambda store: store.forget_worker(self._card.id))
                return

    def _tell(self, write: Callable[[WorkerStore], None]) -> None:
        try:
            write(self._open_store())
        except StoreUnavailable as error:
            if self._heard:
                log.warning("not shown among the workers for now: %s", error)
            self._heard = False
        else:
            self._heard = True


def worker_id() -> str:
    """Of the process that calls: the worker's main one."""
    return f"{socket.gethostname()}:{os.getpid()}"


def card(worker: str, queues: Iterable[str]) -> WorkerCard:
    """How the worker presents itself."""
    versions = {"kleash": VERSION}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return WorkerCard(
        id=worker,
        host=socket.gethostname(),
        queues=tuple(sorted(queues)),
        device=_device(),
        versions=versions,
    )


def _device() -> str:
    """What a child of ours will find; torch would say, but has no place in this process."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return "cuda" if not hidden and any(Path("/dev").glob("nvidia[0-9]*")) else "cpu"
