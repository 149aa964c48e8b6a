"""A running `kleash up` for benchmarks, and what its processes use."""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kleash.spawn import spawn

PATIENCE_S = 180.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(
    registry: Path, *options: str, prepare: Callable[[Path], None] | None = None, **settings: str
) -> Iterator[tuple[str, Path]]:
    """Start it with these settings, wait until the pair is loaded, end it: its URL and its data folder.

    `prepare` may put something into the folder before.
    """
    with tempfile.TemporaryDirectory(prefix="kleash-bench-") as folder:
        data, log = Path(folder, "data"), Path(folder, "log")
        if prepare is not None:
            data.mkdir(mode=0o700)
            prepare(data)
        command = [sys.executable, "-W", "ignore", "-m", "kleash", "up", "--json", "--port", "0", *options]
        command += ["--data", str(data), "--models", str(registry)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KLEASH_")}
        with log.open("w") as errors:
            process = spawn(command, stderr=errors, env=clean | settings)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(log.read_text())
            yield json.loads(line)["url"], data
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)


def marked(mark: str) -> Iterator[int]:
    """Ids of processes with this in their environment."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                yield int(process.name)


def cpu_s(process: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def rss_mib(process: int) -> float:
    """Its resident memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
