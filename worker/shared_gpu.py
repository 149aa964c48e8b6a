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
from urllib.parse import urlencode, urlsplit

from jobs.settings import Settings

CALL_TIMEOUT_S = 5.0
MAX_SLEEP_S = 3600.0  # that a scorer takes at once
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
def scorers_asleep(settings: Settings, who: str) -> Iterator[None]:
    """Inside, the deployment's scorers hold no models, if it says that they share the worker's GPU.

    Entered once they have answered what waited and given up their models. A scorer that cannot be reached holds
    nothing back: the log says so. One that several workers want asleep wakes when the last has ended.
    """
    if not settings.scorer_shares_gpu:
        yield
        return
    over, token = threading.Event(), settings.scorer_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}

    def ask(what: str, *, timeout_s: float, **query: float) -> None:
        path = f"{what}?{urlencode({'who': who, **query})}"
        for url in settings.scorer_urls:
            try:
                _ask(url, path, headers, timeout_s)
            except (OSError, ValueError, http.client.HTTPException) as error:
                log.warning("scorer %s: %s failed: %s", url, what, error)

    def keep_asleep() -> None:
        while not over.wait(settings.heartbeat_s):
            ask("/sleep", timeout_s=CALL_TIMEOUT_S, for_s=min(settings.lease_s, MAX_SLEEP_S))

    renewing = threading.Thread(target=keep_asleep, name="scorers-asleep", daemon=True)
    drain_s = settings.score_timeout_s  # what waits is answered by then, or has given up
    try:
        first_s = min(drain_s + settings.lease_s, MAX_SLEEP_S)
        ask("/sleep", timeout_s=drain_s + CALL_TIMEOUT_S, for_s=first_s)
        renewing.start()
        yield
    finally:
        over.set()
        if renewing.ident is not None:
            renewing.join()  # a renewal under way would put them back to sleep
        ask("/wake", timeout_s=CALL_TIMEOUT_S)


def _ask(url: str, path: str, headers: dict[str, str], timeout_s: float) -> None:
    """POST without a body. Raises OSError, HTTPException."""
    if url.startswith("unix:"):
        connection: http.client.HTTPConnection = _UnixConnection(url.removeprefix("unix:"), timeout_s)
    else:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("POST", path, headers=headers)
        response = connection.getresponse()
        if response.status >= 400:
            raise http.client.HTTPException(f"it answered {response.status}")
    finally:
        connection.close()
