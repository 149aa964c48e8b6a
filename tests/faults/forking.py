"""Training children forked from a parent that has imported everything: real processes, none pays the imports.

`warm()` must run before any tensor is computed in the parent: a fork inherits no thread pools.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from worker.child import Child


def warm() -> None:
    """Import what a training child imports."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import worker.train  # noqa: F401


def fork(body: Callable[[], int], output: int) -> int:
    """Run `body` in a child process, whose exit code is what it returns; returns the pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = body()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class ForkedProcess:
    """What Child needs of a subprocess.Popen."""

    stdin = None

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
            time.sleep(0.005)
        return code

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


class ForkedChild(Child):
    """The supervisor's child, forked: `prepare(arguments)` runs in it first, then worker.train.main."""

    def __init__(
        self, command: Sequence[str], folder: Path, *, prepare: Callable[[Sequence[str]], None]
    ) -> None:
        self._prepare = prepare
        super().__init__(command, folder)

    def _start(self, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        def body() -> int:
            import worker.train

            self._prepare(command)
            sys.argv = ["worker.train", *command[-2:]]
            return worker.train.main()

        return ForkedProcess(fork(body, output))  # type: ignore[return-value]
