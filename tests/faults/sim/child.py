"""The training child as a simulated process: the real worker.train.main on simulated ports."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

with mock.patch("jobs.lifeline.die_with_parent"):  # this process is not the child
    import worker.train
from tests.faults.sim.kernel import Killed, Process, SimEvent, Task, World
from worker.child import Child

START_S = 0.3


class BecameFresh(BaseException):
    """execv."""


class ChildProcess(Process):
    """A process that has arguments, a signal handler and an exit code."""

    def __init__(self, world: World, command: Sequence[str], parent: Process) -> None:
        super().__init__(world, f"child of {parent.name} {command[-2][-4:]}/{command[-1]}", parent)
        self.argv, self.job_id = ["worker.train", *command[-2:]], command[-2]
        self.handler: Any = None
        self.code: int | None = None
        self.ended = SimEvent(world)
        self.on_death = self._died
        self.parent, self.began_at = parent, world.time

    def _died(self) -> None:
        self.code = -signal.SIGKILL if self.code is None else self.code
        self.ended.set()

    def body(self) -> None:
        """Until it returns, or is killed."""
        try:
            while True:
                try:
                    self.code = worker.train.main()
                    break
                except BecameFresh:
                    self.handler = None
                    self.world.sleep(START_S)
                except (worker.train.Stopped, Exception) as error:
                    self.world.record(f"{self.name} ends with {type(error).__name__}: {error}"[:200])
                    self.code = 1
                    break
        except Killed:
            raise
        self.world.record(f"{self.name} exits with {self.code}")
        self.world.kill(self)


class SimChild(Child):
    """worker.child.Child without a real process: what exit codes mean is the real thing's."""

    def __init__(self, world: World, command: Sequence[str], folder: Path) -> None:
        world.gate.before("start child", ("kill before",))
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._world = folder, world
        self._oom_kills = 0
        self._log = mock.Mock(tail=lambda: ("simulated",))
        self.process = ChildProcess(world, command, world.current.process)
        _never_twice(world, self.process)
        self._task = Task(world, self.process, self.process.body, START_S)

    def wait(self, timeout_s: float) -> int | None:
        self.process.ended.wait(timeout_s)
        return self.process.code

    def terminate(self) -> None:
        """SIGTERM: the handler runs when the child next does; without one it dies."""
        if self.process.dead:
            return
        handler = self.process.handler
        if handler is None:
            self.process.code = -signal.SIGTERM
            self._world.kill(self.process)
            return
        self._task.interrupt = lambda: handler(signal.SIGTERM, None)
        self._task.wake_at = min(self._task.wake_at, self._world.time)

    def kill(self) -> None:
        self._world.kill(self.process)

    def close(self) -> None:
        self.kill()


def _never_twice(world: World, new: ChildProcess) -> None:
    """Two children of one job at once: only if somebody who should have ended the first could not."""
    for other in [task.process for task in world.tasks if isinstance(task.process, ChildProcess)]:
        if other is not new and other.job_id == new.job_id and not other.dead:
            excused = other.parent.was_frozen or other.was_frozen or world.clock_jumped_at >= other.began_at
            if not excused:
                world.fault(f"{new.name} starts while {other.name} still runs")


class ChildArgv:
    """The module `sys` as worker.train sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def argv(self) -> list[str]:
        argv: list[str] = self._world.current.process.argv
        return argv

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


class ChildSignals:
    """The module `signal` as worker.train sees it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def signal(self, number: int, handler: Any) -> None:
        self._world.current.process.handler = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)
