"""What a contender is told, and how its iterations are permitted, timed and reported."""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from benchmarks.ppo.cases import CASES, Case


class Task(NamedTuple):
    """What a contender is told at its start."""

    contender: str
    case_name: str
    folder: str  # of the model
    packages: str | None  # folder that TRL is installed in
    seed: int
    iterations: int
    rescored: int = 0  # batches of fresh completions after each iteration

    @property
    def case(self) -> Case:
        """By its name."""
        return CASES[self.case_name]


class Turn:
    """Waits for permission, times what follows, and reports."""

    def __init__(self, task: Task, answers: TextIO, imported: int | None) -> None:
        self._task, self._answers, self._imported = task, answers, imported
        self._optimizer_steps = 0
        self._rescore: Callable[[], dict[str, float]] | None = None
        self._began = 0.0

    def ready(self, policy: Callable[[], Any]) -> None:
        """Models are loaded. `policy` is asked for only if somebody rescores it."""
        if self._task.rescored:
            from benchmarks.ppo.rescoring import mean_rescorer

            self._rescore = mean_rescorer(self._task, policy())
        self._answer({"imported_bytes": self._imported})

    def count_optimizer_step(self, *_: object) -> None:
        """After each of them."""
        self._optimizer_steps += 1

    def finished(self, kl: float, reward: float) -> None:
        """An iteration is over; these are the trainer's own figures of its rollout."""
        seconds = time.perf_counter() - self._began
        found = {"seconds": seconds, "optimizer_steps": self._optimizer_steps, "kl": kl, "reward": reward}
        self._optimizer_steps = 0
        self._answer({**found, "peak_bytes": memory("VmHWM")})

    def _answer(self, found: dict[str, Any]) -> None:
        found["rescored"] = self._rescore() if self._rescore else None
        print(json.dumps(found), file=self._answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # nobody wants more, and the trainer's own way out may save or print
        self._began = time.perf_counter()


def memory(field: str) -> int | None:
    """VmRSS or VmHWM in bytes; None where there is no /proc."""
    status = Path("/proc/self/status")
    found = (
        re.search(rf"^{field}:\s+(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    )
    return int(found[1]) * 1024 if found else None
