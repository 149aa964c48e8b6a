"""A world in which blocking code of many processes runs in one order that a seed decides.

Every thread of every simulated process is a `Task`: an OS thread that runs only while it holds the baton, so
exactly one runs at a time, and hands it on only inside `World.sleep`. Time is virtual: it jumps to the next turn.
A task *visits* a process: a request that a client sends runs in the client's task under the API's process.
"""

import hashlib
import random
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Killed(BaseException):
    """The process that this code ran in is dead: unwind, without any effect."""


class Process:
    """What dies together. `on_death` starts its successor."""

    def __init__(self, world: "World", name: str, parent: "Process | None" = None) -> None:
        self.name, self.dead, self.frozen_until, self.was_frozen = name, False, 0.0, False
        self.killable = True
        self.children: list[Process] = []
        self.on_death: Callable[[], None] | None = None
        self.world = world
        world.processes.append(self)
        if parent is not None:
            parent.children.append(self)

    @property
    def live_children(self) -> list["Process"]:
        return [child for child in self.children if not child.dead]


class Task:
    """One thread of control."""

    def __init__(self, world: "World", process: Process, body: Callable[[], object], delay_s: float) -> None:
        self.world, self.process, self.home = world, process, process
        self.wake_at, self.tie = world.time + delay_s, world.tie()
        self.awaited: SimEvent | None = None
        self.interrupt: Callable[[], None] | None = None  # a signal: runs in this task when it next wakes
        self.started = False
        self.baton = threading.Lock()
        self.baton.acquire()
        self._body = body
        world.tasks.append(self)
        self.thread = threading.Thread(target=self._main, daemon=True)
        self.thread.start()

    @property
    def turn(self) -> tuple[float, int]:
        frozen_until = 0.0 if self.process.dead else self.process.frozen_until
        return max(self.wake_at, frozen_until, self.world.time), self.tie

    def _main(self) -> None:
        self.baton.acquire()
        try:
            self.world.woken(self)
            self.started = True
            self._body()
        except Killed:
            pass
        except BaseException as error:  # an actor's bug is a finding, and the baton must go on
            if not self.world.over:
                self.world.fault(f"{self.process.name} ended with {error!r}\n{traceback.format_exc()}")
        self.world.end(self)


class SimEvent:
    """threading.Event for tasks."""

    def __init__(self, world: "World") -> None:
        self._world, self._set = world, False

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        for task in self._world.tasks:
            if task.awaited is self:
                task.wake_at, task.awaited = self._world.time, None

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            self._world.current.awaited = self
            self._world.sleep(1e9 if timeout is None else timeout)
        return self._set


class SimThreading:
    """The names that code takes from the module `threading`."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def Event(self) -> SimEvent:
        return SimEvent(self._world)

    def Thread(self, *, target: Callable[[], object], name: str, daemon: bool) -> Any:
        world = self._world
        process = world.current.process

        class Starter:
            def start(self) -> None:
                Task(world, process, target, 0.0)

        return Starter()


class World:
    """Time, order, chance, death."""

    def __init__(self, seed: int, *, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.time, self.over, self.calm = 0.0, False, False
        self.tasks: list[Task] = []
        self.processes: list[Process] = []
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.budget = 0  # faults that may still happen
        self.rates: dict[str, float] = {}
        self._trace, self._digest = trace, hashlib.blake2b(digest_size=16)
        self._switches = 0
        self._director = threading.Lock()
        self._director.acquire()
        self.current: Any = None
        self.gate: Any = None  # what port calls pass
        self.db_offset, self.clock_jumped_at = 1e6, -1.0

    # -- order --------------------------------------------------------------------------------
    def tie(self) -> int:
        return self.rng.getrandbits(32)

    def run(self, director: Callable[[], None]) -> None:
        """Run `director` and whatever it starts; when it returns, every other task is unwound."""
        process = Process(self, "director")
        process.killable = False
        task = Task(self, process, lambda: self._direct(director), 0.0)
        task.baton.release()
        self._director.acquire()

    def _direct(self, director: Callable[[], None]) -> None:
        try:
            director()
        finally:
            self.over = True
            for task in self.tasks:
                task.process.dead = True

    def sleep(self, seconds: float) -> None:
        """Let others run; come back after so much virtual time, or when woken."""
        task = self.current
        task.wake_at, task.tie = self.time + seconds, self.tie()
        chosen = min(self.tasks, key=lambda other: other.turn)
        if chosen is not task:
            self._hand_to(chosen)
            task.baton.acquire()
        self.woken(task)

    def woken(self, task: Task) -> None:
        """The task has the baton."""
        self.time = max(self.time, task.turn[0])
        self.current, task.awaited = task, None
        self._switches += 1
        if task.process.dead:
            raise Killed
        if task.interrupt is not None:
            interrupt, task.interrupt = task.interrupt, None
            interrupt()

    def end(self, task: Task) -> None:
        """The task's last act."""
        self.tasks.remove(task)
        if self.tasks:
            self._hand_to(min(self.tasks, key=lambda other: other.turn))
        else:
            self._director.release()

    def _hand_to(self, task: Task) -> None:
        task.baton.release()

    # -- death --------------------------------------------------------------------------------
    def kill(self, process: Process) -> None:
        """kill -9; its children die with it (PDEATHSIG)."""
        if process.dead:
            return
        process.dead = True
        self.record(f"-- {process.name} dies")
        for child in process.children:
            self.kill(child)
        for task in self.tasks:
            if task.process is process:
                task.wake_at, task.awaited = self.time, None
        if process.on_death is not None:
            process.on_death()

    def freeze(self, process: Process, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later; a worker's children stop with it."""
        self.record(f"-- {process.name} stops for {seconds:.1f} s")
        for one in (process, *process.children):
            one.frozen_until, one.was_frozen = self.time + seconds, True

    @contextmanager
    def visit(self, process: Process) -> Iterator[None]:
        """Run the block in `process`; raises ConnectionError if it dies meanwhile."""
        task = self.current
        home = task.process
        task.process = process
        try:
            if process.dead:
                raise Killed
            yield
        except Killed:
            if home.dead or self.over:
                raise
            raise ConnectionError(f"{process.name} died") from None
        finally:
            task.process = home

    def point(self, name: str) -> None:
        """jobs.faults.point: inside a transaction only death may come, elsewhere others may run."""
        if self.over or self.current is None:
            return
        if name.startswith("commit."):
            if self.current.process.killable and self.dice(("kill at commit",)):
                self.record(f"{self.current.process.name} {name} [kill at commit]")
                self.gate.die()
        else:
            self.gate.before(name, ("kill before", "freeze"))

    def pause(self) -> None:
        """Now and then, let others run in the middle of a call."""
        if not self.over and self.current is not None and self.rng.random() < 0.2:
            self.sleep(self.rng.uniform(0.0, 0.5))

    # -- what happened ------------------------------------------------------------------------
    def record(self, line: str) -> None:
        """One line of the history, which the hash is made of."""
        text = f"{self.time:.6f} {line}"
        self._digest.update(text.encode())
        if self._trace is not None:
            self._trace(text)

    def fault(self, what: str) -> None:
        """A violation that was seen while it happened."""
        self.record(f"!! {what}")
        self.faults.append(what)

    def hash(self) -> str:
        return self._digest.hexdigest()

    # -- chance -------------------------------------------------------------------------------
    def dice(self, kinds: tuple[str, ...]) -> str | None:
        """One of `kinds`, by this seed's rates, or None."""
        if self.calm or self.budget <= 0:
            return None
        drawn = self.rng.random()
        for kind in kinds:
            drawn -= self.rates.get(kind, 0.0)
            if drawn < 0:
                self.budget -= 1
                self.counts[kind] += 1
                return kind
        return None
