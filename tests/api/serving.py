"""`python -m api` as a process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

from jobs.settings import Settings
from kleash.claims import free_port

ROOT = Path(__file__).resolve().parents[2]
MAX_BODY = 20_000


@contextmanager
def serving(
    settings: Settings, tmp_path: Path, *, command: Sequence[str] = ("-m", "api"), **env: str
) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    """`python -m api` without broker and scorer; a test that ends it itself also waits for it."""
    port = free_port("127.0.0.1", 0)
    environment = os.environ | {
        "KLEASH_DATABASE_URL": settings.database_url.get_secret_value(),
        "KLEASH_BROKER_URL": f"redis+socket://{tmp_path}/nowhere.sock",
        "KLEASH_SCORER_URL": f"unix:{tmp_path}/nowhere.sock",
        "KLEASH_DATA": str(tmp_path / "data"),
        "KLEASH_MODELS_FILE": str(settings.models_file),
        "KLEASH_PORT": str(port),
        "KLEASH_UNSAFE_NO_AUTH": "true",
        "KLEASH_MAX_BODY_BYTES": str(MAX_BODY),
        **env,
    }
    log = tmp_path / "api.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(url, process)
        yield url, log, process
    finally:
        if process.returncode is None:
            process.terminate()
            assert process.wait(30) == -signal.SIGTERM  # uvicorn ends in order, then by the signal itself


def wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx2.get(f"{url}/health")
            return
        except httpx2.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")
