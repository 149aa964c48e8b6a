"""The server of these suites as a child process."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Served(NamedTuple):
    """Where the API is, and what may be asked of it."""

    url: str
    keys: dict[str, str]  # by role
    ids: dict[str, list[str]]  # by path parameter

    def headers(self, role: str) -> dict[str, str]:
        """What a request of that role carries; `nobody` carries nothing."""
        return {"Authorization": f"Bearer {self.keys[role]}"} if role in self.keys else {}


@contextmanager
def served() -> Iterator[Served]:
    """A new server, whose log must hold no error when it ends."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KLEASH_")}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.http_contract.server"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
        )
        try:
            assert process.stdout is not None
            told: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
            assert told, "the server has not started"
            yield Served(**told)
            assert process.poll() is None, f"the server ended with {process.returncode}"
        finally:
            process.terminate()
            process.wait(60)
            log.seek(0)
            errors = [line for line in log if '"level":"info"' not in line]
        assert not errors, "".join(errors[:40])
