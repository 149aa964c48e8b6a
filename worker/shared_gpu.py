"""One GPU for scorer and training: the scorer gives up its models while a job runs. Torch-free.

It sleeps for as long as a lease lasts and is asked again with every heartbeat, so that it wakes by itself when the
worker that asked is gone.
"""

import http.client
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from jobs.settings import Settings

CALL_TIMEOUT_S = 5.0
log = logging.getLogger(__name__)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP on a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("scorer", timeout=timeout_s)
        self._path, self._timeout_s = path, timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(self._path)


@contextmanager
def scorers_asleep(settings: Settings) -> Iterator[None]:
    """Inside, the deployment's scorers hold no models, if it says that they share the worker's GPU.

    Entered once they have answered what waited and given up their models. A scorer that cannot be reached holds
    nothing back: the log says so.
    """
    if not settings.scorer_shares_gpu:
        yield
        return
    over = threading.Event()

    def keep_asleep() -> None:
        while not over.wait(settings.heartbeat_s):
            _ask_all(settings, "/sleep", timeout_s=CALL_TIMEOUT_S)

    renewing = threading.Thread(target=keep_asleep, name="scorers-asleep", daemon=True)
    try:
        _ask_all(settings, "/sleep", timeout_s=settings.score_timeout_s + CALL_TIMEOUT_S)
        renewing.start()
        yield
    finally:
        over.set()
        if renewing.ident is not None:
            renewing.join()  # a renewal under way would put them back to sleep
        _ask_all(settings, "/wake", timeout_s=CALL_TIMEOUT_S)


def _ask_all(settings: Settings, what: str, *, timeout_s: float) -> None:
    for url in settings.scorer_urls:
        try:
            _ask(url, f"{what}?for_s={settings.lease_s:g}" if what == "/sleep" else what, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            log.warning("scorer %s: %s failed: %s", url, what, error)


def _ask(url: str, path: str, timeout_s: float) -> None:
    """POST without a body. Raises OSError, HTTPException."""
    if url.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(url.removeprefix("unix:"), timeout_s)
    else:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("POST", path)
        response = connection.getresponse()
        if response.status >= 400:
            raise http.client.HTTPException(f"it answered {response.status}")
    finally:
        connection.close()
