"""Training children forked from a process that has imported everything: real processes, none pays the imports.

`fork` copies this process: nothing else may be at work in it, no thread and no open database, because SQLite in a
copy believes that its original's locks are its own. A `ForkServer` is a copy made early, which makes further ones.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from worker.child import Child


def warm() -> None:
    """Import what a training child imports, before any tensor is computed: a fork inherits no thread pools."""
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


class ForkServer:
    """Runs `body(arguments)` in copies of this process as it is now. It ends with this process."""

    def __init__(self, body: Callable[[Sequence[str]], int]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._control.close()
            _serve(theirs, body)
            os._exit(0)
        theirs.close()

    def start(self, arguments: Sequence[str], output: int) -> "ForkedProcess":
        """Its stdout and stderr are `output`."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self._control, [json.dumps(arguments).encode()], [output, theirs.fileno()])
        theirs.close()
        return ForkedProcess(ours)


def _serve(control: socket.socket, body: Callable[[Sequence[str]], int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        request, descriptors, *_ = socket.recv_fds(control, 65_536, 2)
        if not request:
            return
        if os.fork() == 0:
            control.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _run(partial(body, json.loads(request)), *descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _run(body: Callable[[], int], output: int, reply: int) -> None:
    """Tell the child's pid, then its exit code."""
    pid = fork(body, output)
    os.write(reply, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(reply, f"{os.waitstatus_to_exitcode(status)}\n".encode())


class ForkedProcess:
    """What Child needs of a subprocess.Popen."""

    stdin = None

    def __init__(self, told: socket.socket) -> None:
        self._told, self._lines = told, told.makefile("r", buffering=1)
        self.pid, self.returncode = int(self._lines.readline()), None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("fork", timeout or 0.0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._told.close()
        return self.returncode

    def terminate(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)


class ForkedChild(Child):
    """The supervisor's child, from a fork server: `arguments` are what it gets before the command's last two."""

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        *,
        server: ForkServer,
        arguments: Sequence[str],
        withheld: Collection[str] = (),
    ) -> None:
        self._server, self._arguments = server, arguments
        super().__init__(command, folder, withheld=withheld)

    def _start(self, command: Sequence[str], output: int) -> subprocess.Popen[bytes]:
        return self._server.start([*self._arguments, *command[-2:]], output)  # type: ignore[return-value]
