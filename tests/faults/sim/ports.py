"""The ports as a simulated process sees them: each call may be late, fail, or be the last thing it does."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.errors import BrokerUnavailable, LeaseLost, StoreUnavailable
from jobs.files import LocalFiles
from jobs.sql_store import SqlStore
from tests.faults.sim.kernel import Killed, SimEvent, World

OWNER_WRITES = frozenset(
    {
        "heartbeat",
        "set_phase",
        "record_step",
        "record_samples",
        "add_event",
        "record_checkpoint",
        "record_shard",
        "drop_checkpoints",
        "finish",
        "hand_back",
    }
)
CALL_FAULTS = ("kill before", "freeze", "store error before")
FREEZE_S = (0.5, 20.0)


class Gate:
    """What every port call passes: before it and after it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def before(self, name: str, kinds: tuple[str, ...] = CALL_FAULTS) -> str | None:
        """Wait a little (others run), and perhaps die, stop, or be told to fail."""
        world, process = self.world, self.world.current.process
        if process.dead:
            raise Killed
        kind = world.dice(kinds) if process.killable else None
        world.record(f"{process.name} {name}" + (f" [{kind}]" if kind else ""))
        if kind == "kill before":
            self.die()
        if kind == "freeze":
            world.freeze(process, world.rng.uniform(*FREEZE_S))
        world.sleep(world.rng.uniform(0.0, 0.02) if world.rng.random() < 0.9 else world.rng.uniform(0.0, 0.3))
        return kind

    def after(self, name: str) -> None:
        process = self.world.current.process
        if process.killable and self.world.dice(("kill after",)):
            self.world.record(f"{process.name} {name} done [kill after]")
            self.die()

    def die(self) -> None:
        self.world.kill(self.world.current.process)
        raise Killed


class SimStore:
    """jobs.store.Store: the real one behind a gate, with an eye on the fence."""

    def __init__(self, gate: Gate, store: SqlStore, spy: "Spy") -> None:
        self._gate, self._store, self._spy = gate, store, spy

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._store, name)
        world = self._gate.world

        def call(*args: Any, **options: Any) -> Any:
            kind = self._gate.before(f"store.{name} {_shown(args)}")
            if kind == "store error before" or world.time < self._spy.down_until:
                raise StoreUnavailable("simulated")
            result = self._spy.checked(world, name, real, args, options)
            self._gate.after(f"store.{name}")
            if world.dice(("store error after",)):
                world.record(f"{world.current.process.name} store.{name} [store error after]")
                raise StoreUnavailable("simulated: its end is unknown")
            return result

        return call


class Spy:
    """Sees each row before and after an owner's write, through a connection of its own."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self.down_until = 0.0

    def row(self, job_id: str) -> tuple[Any, ...] | None:
        query = "SELECT status, attempt, version, event_seq, step, crash_count FROM jobs WHERE id = ?"
        found: tuple[Any, ...] | None = self._connection.execute(query, (job_id,)).fetchone()
        return found

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def checked(self, world: World, name: str, real: Callable[..., Any], args: Any, options: Any) -> Any:
        """Call it. A write by an attempt that does not own a running job must be refused and change nothing."""
        if name not in OWNER_WRITES:
            return real(*args, **options)
        job_id, attempt = args[0], args[1]
        before = self.row(job_id)
        owns = before is not None and before[0] == "running" and before[1] == attempt
        try:
            result = real(*args, **options)
        except LeaseLost:
            if owns:
                world.fault(f"{name} of {job_id} by its owner, attempt {attempt}, was refused: {before}")
            raise
        finally:
            if not owns and self.row(job_id) != before:
                world.fault(
                    f"stale {name} by attempt {attempt} changed {job_id}: {before} → {self.row(job_id)}"
                )
        if not owns:
            world.fault(f"stale {name} by attempt {attempt} was accepted: {before}")
        return result

    def close(self) -> None:
        self._connection.close()


class SimFiles:
    """jobs.ports.Files: the real one; fault points inside it are gates too."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self._files = gate, LocalFiles()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._files, name)

        def call(*args: Any, **options: Any) -> Any:
            folders = " ".join(arg.name for arg in args if isinstance(arg, Path))
            self._gate.before(f"files.{name} {folders}", ("kill before", "freeze"))
            result = real(*args, **options)
            self._gate.after(f"files.{name}")
            return result

        return call


class SimClock:
    """jobs.ports.Clock."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def monotonic(self) -> float:
        if self._gate.world.current.process.dead:
            raise Killed
        return self._gate.world.time

    def wait(self, seconds: float) -> None:
        self._gate.before("clock.wait", ("kill before", "freeze"))
        self._gate.world.sleep(seconds)


class SimRng:
    """jobs.ports.Rng."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def job_id(self) -> str:
        self._gate.before("rng.job_id", ("kill before", "freeze"))
        rng = self._gate.world.rng
        return f"job_{int(self._gate.world.time * 1000):012x}{rng.getrandbits(80):020x}"

    def secret(self) -> str:
        return hashlib.sha256(self._gate.world.rng.randbytes(32)).hexdigest()

    def jitter(self) -> float:
        return self._gate.world.rng.random()


class Queue:
    """The broker's messages; there is no delivery guarantee of any kind."""

    def __init__(self, world: World) -> None:
        self.world, self.messages, self.down_until = world, list[tuple[float, int, str, int]](), 0.0
        self.arrived = SimEvent(world)

    def put(self, job_id: str, epoch: int, priority: int) -> None:
        kind = self.world.dice(("drop", "duplicate", "delay"))
        if kind is not None:
            self.world.record(f"-- message {job_id[-4:]}:{epoch} [{kind}]")
        for _ in range({"drop": 0, "duplicate": 2}.get(kind or "", 1)):
            late = self.world.rng.uniform(0.0, 40.0 if kind in ("delay", "duplicate") else 0.05)
            self.messages.append((self.world.time + late, -priority, job_id, epoch))
        self.arrived.set()

    def take(self) -> tuple[str, int] | None:
        """The most urgent message that has arrived."""
        ready = [message for message in self.messages if message[0] <= self.world.time]
        if not ready:
            return None
        chosen = min(ready, key=lambda message: (message[1], message[0]))
        self.messages.remove(chosen)
        return chosen[2], chosen[3]

    def next_at(self) -> float:
        return min((message[0] for message in self.messages), default=self.world.time + 1e6)


class SimBroker:
    """jobs.ports.Broker, and the worker's end of it."""

    def __init__(self, gate: Gate, queue: Queue) -> None:
        self._gate, self._queue = gate, queue

    def publish(self, job_id: str, epoch: int, *, queue: str, priority: int = 5) -> None:
        kind = self._gate.before(f"broker.publish {job_id[-4:]}:{epoch}", (*CALL_FAULTS[:2], "broker error"))
        world = self._gate.world
        down = kind == "broker error" or world.time < self._queue.down_until
        if not down or world.rng.random() < 0.3:  # an error may come after the message went through
            self._queue.put(job_id, epoch, priority)
        if down:
            raise BrokerUnavailable("simulated")
        self._gate.after("broker.publish")

    def receive(self) -> tuple[str, int]:
        """Waits for a message and acknowledges it at once."""
        world = self._gate.world
        while True:
            if world.time >= self._queue.down_until and (message := self._queue.take()) is not None:
                self._gate.before(f"broker.receive {message[0][-4:]}:{message[1]}", CALL_FAULTS[:2])
                return message
            self._queue.arrived.clear()
            again_at = max(self._queue.next_at(), self._queue.down_until)
            self._queue.arrived.wait(max(0.001, again_at - world.time))

    def ready(self) -> bool:
        return self._gate.world.time >= self._queue.down_until


def _shown(args: tuple[Any, ...]) -> str:
    """Arguments for the history: ids and numbers, no paths."""
    shown = [arg for arg in args[:2] if isinstance(arg, str | int)]
    return " ".join(arg[-4:] if isinstance(arg, str) else str(arg) for arg in shown)
