"""The whole stack as a person starts it, and the processes it is made of."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 180.0


class Stack:
    """One `kleash up`, as a person would start it."""

    def __init__(self, data: Path, models: Path, *more: str, env: dict[str, str] | None = None) -> None:
        self.log = data.parent / f"{time.monotonic_ns()}.log"
        command = [
            sys.executable,
            "-m",
            "kleash",
            "up",
            "--json",
            "--data",
            str(data),
            "--models",
            str(models),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *(more or ("--port", "0"))],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("KLEASH_")} | (env or {}),
            )

    def ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        document: dict[str, Any] = json.loads(line)
        return document

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


def alive(data: Path) -> dict[int, str]:
    """Processes with the stack's mark in their environment, or (Valkey overwrites its own) at home in it."""
    mark = f"KLEASH_DATA={data}".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark in (process / "environ").read_bytes().split(b"\0")
            if marked or (process / "cwd").readlink().is_relative_to(data):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def nobody_is_left(data: Path) -> bool:
    give_up_at = time.monotonic() + PATIENCE_S
    while left := alive(data):
        if time.monotonic() > give_up_at:
            pytest.fail(f"still running: {left}")
        time.sleep(0.05)
    return True
