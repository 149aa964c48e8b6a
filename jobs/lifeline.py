"""A process that dies with its parent, whatever kills the parent.

`python -m jobs.lifeline -- CMD ARGS…` runs CMD so; `die_with_parent()` does it for our own children's first
lines. On Linux the kernel does it (PR_SET_PDEATHSIG): the signal comes when the *thread* that spawned us ends, so
spawn from one that lives as long as the child should. Elsewhere a watcher waits for the end of file of stdin,
which must be a pipe that the parent keeps open; on Linux such a pipe tells us of a parent that died before the
first line ran.
"""

import ctypes
import os
import select
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType

PR_SET_PDEATHSIG = 1
STDIN = 0
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def die_with_parent(*, by_kernel: bool = sys.platform == "linux") -> None:
    """From now on this process gets SIGKILL when its parent ends."""
    if not by_kernel:
        _when_parent_ends(_kill_group)
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent or _parent_hung_up():
        _kill_group()


def main(arguments: Sequence[str]) -> int:
    """Become CMD (Linux), or run it and watch; returns its exit code, 128 + n for signal n."""
    by_kernel = sys.platform == "linux"
    if arguments[:1] == ["--watch-stdin"]:
        by_kernel, arguments = False, arguments[1:]
    if arguments[:1] != ["--"] or len(arguments) < 2:
        sys.stderr.write("usage: python -m jobs.lifeline [--watch-stdin] -- CMD ARGS…\n")
        return 2
    command = list(arguments[1:])
    if by_kernel:
        die_with_parent()
        os.execvp(command[0], command)  # noqa: S606  # the signal setting survives exec
    return _run_and_watch(command)


def _run_and_watch(command: list[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)

    def end() -> None:
        child.kill()
        _kill_group()

    _when_parent_ends(end)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _when_parent_ends(act: Callable[[], None]) -> None:
    """Call `act` at the end of file of stdin, if stdin is a pipe."""
    if not stat.S_ISFIFO(os.fstat(STDIN).st_mode):
        return

    def watch() -> None:
        while os.read(STDIN, 4096):
            pass
        act()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _parent_hung_up() -> bool:
    """True if stdin is a pipe that nobody holds any more."""
    if not stat.S_ISFIFO(os.fstat(STDIN).st_mode):
        return False
    poll = select.poll()
    poll.register(STDIN, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def _kill_group() -> None:
    """End this process, and the rest of its group if the group is its own."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
