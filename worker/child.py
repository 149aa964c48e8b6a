"""The training child as the supervisor sees it: a process group, an exit code, a log file."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from jobs.attempt_log import LOG_NAME
from jobs.spec import JobFailure
from worker.child_log import ChildLog
from worker.failures import EXIT_CRASHED, EXIT_DISK, EXIT_FAILED, EXIT_UNREACHABLE, HINTS


class Child:
    """One run of the training command, in a session of its own; its output goes to `folder`/log.txt.

    Environment variables named in `withheld` are not handed on to it.
    """

    def __init__(self, command: Sequence[str], folder: Path, *, withheld: Collection[str] = ()) -> None:
        self._withheld = withheld
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._oom_kills = _oom_kills()
        self._log = ChildLog(folder / LOG_NAME)
        try:
            self._process = self._start(command, self._log.child_end)
        finally:
            self._log.start()

    def _start(self, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: its end of file means that we are gone (jobs.lifeline)
            stdout=output,
            stderr=subprocess.STDOUT,
            env={k: v for k, v in _environment().items() if k not in self._withheld},
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
        self._log.finish()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def failure(self, code: int) -> JobFailure:
        """What an exit code other than success and EXIT_STOPPED means."""
        self._log.finish()
        if code in (EXIT_FAILED, EXIT_CRASHED):
            return self._told_failure()
        if code == EXIT_UNREACHABLE:
            return self._failure("store_unavailable", "The training process could not reach the database.")
        if code == EXIT_DISK:
            return self._failure("disk_full", "The disk takes neither a checkpoint nor the reason why.")
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return self._failure(
                "oom_killed", "The system ran out of memory and killed the training process."
            )
        if code == -signal.SIGABRT and any("std::bad_alloc" in line for line in self._log.tail()):
            return self._failure("host_oom", "The training process ran out of memory and aborted.")
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        if code == 0:
            how = "ended without a result"
        return self._failure("crashed", f"The training process {how}.")

    def _failure(self, code: str, detail: str) -> JobFailure:
        return JobFailure(code=code, detail=detail, hint=HINTS[code], log_tail=self._log.tail())

    def _told_failure(self) -> JobFailure:
        """The failure that the child described in error.json."""
        try:
            told = json.loads((self._folder / "error.json").read_bytes())
            return JobFailure(
                code=str(told["code"]),
                detail=str(told["detail"]),
                hint=told.get("hint"),
                step=told.get("step"),
                log_tail=self._log.tail(),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return self._failure("crashed", "The training process failed and left no readable error.json.")


def _environment() -> dict[str, str]:
    """Ours, with what makes a resumed run equal to the bit fixed unless the deployment fixed it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(cores))
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
