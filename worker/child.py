"""The training child as the supervisor sees it: a process group, an exit code, a log file."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from jobs.spec import JobFailure

EXIT_FAILED, EXIT_STOPPED = 70, 75
LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 16_384


class Child:
    """One run of the training command, in a session of its own; its output goes to `folder`/log.txt."""

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._oom_kills = _oom_kills()
        with (folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # held open: its end of file means that we are gone (jobs.lifeline)
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )

    def wait(self, timeout_s: float) -> int | None:
        """The exit code (−n for signal n), or None if it still runs after `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def terminate(self) -> None:
        """Ask it to save and stop."""
        self._process.terminate()

    def kill(self) -> None:
        """End it and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Leave nothing of it behind."""
        self.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def failure(self, code: int) -> JobFailure:
        """What an exit code other than success and EXIT_STOPPED means."""
        if code == EXIT_FAILED:
            return self._told_failure()
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return JobFailure(
                code="oom_killed",
                detail="The system ran out of memory and killed the training process.",
                hint="Lower rollout.batch_size or rollout.max_new_tokens, or give the worker more memory.",
                log_tail=self._log_tail(),
            )
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        if code == 0:
            how = "ended without a result"
        return JobFailure(code="crashed", detail=f"The training process {how}.", log_tail=self._log_tail())

    def _told_failure(self) -> JobFailure:
        """The failure that the child described in error.json."""
        try:
            told = json.loads((self._folder / "error.json").read_bytes())
            return JobFailure(
                code=str(told["code"]),
                detail=str(told["detail"]),
                hint=told.get("hint"),
                step=told.get("step"),
                log_tail=self._log_tail(),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            detail = "The training process failed and left no readable error.json."
            return JobFailure(code="crashed", detail=detail, log_tail=self._log_tail())

    def _log_tail(self) -> tuple[str, ...]:
        with (self._folder / "log.txt").open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return tuple(log.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _environment() -> dict[str, str]:
    """Ours, with what makes a resumed run equal to the bit fixed unless the deployment fixed it."""
    threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    fixed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "MKL_DYNAMIC": "FALSE",
        "MKL_CBWR": "AUTO",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    # The stack's idle processes sleep where OpenMP would spin; a training step is a fifth faster spinning.
    quiet = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    return fixed | {name: value for name, value in os.environ.items() if name not in quiet}


def _oom_kills() -> int:
    """How many processes of our cgroup (version 2) the kernel has killed for memory; 0 where unknown."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        group = next(
            line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
        )
        events = Path("/sys/fs/cgroup", group.removeprefix("0::").lstrip("/"), "memory.events").read_text()
        return int(next(line for line in events.splitlines() if line.startswith("oom_kill ")).split()[1])
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
