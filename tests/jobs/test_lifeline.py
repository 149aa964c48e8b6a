"""jobs.lifeline against real kills. A pipe tells when a process has ended: its write end closes with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A parent that holds a child's stdin open, as `kleash up` and the supervisor do, and says the child's pid.
PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, start_new_session=True)
child.wait()
"""
SLEEPER = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
OWN_CHILD = "from jobs.lifeline import die_with_parent; die_with_parent({}); " + SLEEPER
WITH_GRANDCHILD = (
    "import subprocess, sys, jobs.lifeline; jobs.lifeline.die_with_parent(by_kernel=False);"
    f"subprocess.run([sys.executable, '-c', {SLEEPER!r}])"
)
LIFELINE = [sys.executable, "-m", "jobs.lifeline"]
COMMANDS = {
    "linux command": [*LIFELINE, "--", sys.executable, "-c", SLEEPER],
    "other command": [*LIFELINE, "--watch-stdin", "--", sys.executable, "-c", SLEEPER],
    "linux own child": [sys.executable, "-c", OWN_CHILD.format("")],
    "other own child": [sys.executable, "-c", OWN_CHILD.format("by_kernel=False")],
    "other with grandchild": [sys.executable, "-c", WITH_GRANDCHILD],
}


def start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_kill_9_of_the_parent_ends_the_child(name: str) -> None:
    parent = start([sys.executable, "-c", PARENT, *COMMANDS[name]])
    assert parent.stdout is not None
    int(parent.stdout.readline())  # the sleeper runs, and shares this pipe
    parent.kill()
    assert parent.stdout.read() == "", "the end of file comes when the last of them is gone"
    parent.wait()
    parent.stdout.close()


def test_a_parent_that_died_before_the_first_line_is_noticed() -> None:
    read, write = os.pipe()
    os.close(write)
    command = [sys.executable, "-c", OWN_CHILD.format("")]
    with os.fdopen(read) as dead_pipe:
        done = subprocess.run(command, cwd=ROOT, stdin=dead_pipe, capture_output=True, start_new_session=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""


@pytest.mark.parametrize("option", [[], ["--watch-stdin"]])
def test_it_is_transparent(option: list[str]) -> None:
    exits = [*LIFELINE, *option, "--", sys.executable, "-c", "print('out'); raise SystemExit(7)"]
    done = subprocess.run(exits, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "out\n")
    sleeps = start([*LIFELINE, *option, "--", sys.executable, "-c", SLEEPER])
    assert sleeps.stdout is not None
    sleeps.stdout.readline()
    sleeps.terminate()
    assert sleeps.wait() in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert sleeps.stdout.read() == ""
    sleeps.stdout.close()


def test_a_wrong_call_says_how() -> None:
    done = subprocess.run([*LIFELINE, "ls"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
