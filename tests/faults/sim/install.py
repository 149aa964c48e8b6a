"""Where the code under test meets the simulated world: the names it takes from elsewhere."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jobs.dispatcher
import jobs.files
import jobs.sql_base
import worker.supervisor
from jobs.settings import Settings
from tests.faults.sim import child
from tests.faults.sim.disk import Disk, SyncSpy
from tests.faults.sim.kernel import SimThreading, World
from tests.faults.sim.ports import SimClock, SimFiles, SimStore
from tests.faults.sim.training import Training

import worker.train  # isort: skip  # only after tests.faults.sim.child has made that harmless
import worker.run  # isort: skip
import worker.saves  # isort: skip


@contextmanager
def installed(world: World, disk: Disk, settings: Settings, store_of: Any) -> Iterator[None]:
    """`store_of()` is the store of the process that runs."""
    training, threads = Training(world), SimThreading(world)

    def start_again() -> int:
        raise child.BecameFresh

    names: dict[Any, dict[str, Any]] = {
        jobs.dispatcher: {"threading": threads},
        jobs.files: {"os": SyncSpy(lambda: disk), "point": world.point},
        jobs.sql_base: {"point": world.point},
        worker.supervisor: {"threading": threads, "point": world.point},
        worker.train: {
            "Settings": lambda: settings,
            "SystemClock": lambda: SimClock(world.gate),
            "open_store": lambda _: store_of(),
            "signal": child.ChildSignals(world),
            "sys": child.ChildArgv(world),
            "faulthandler": mock.Mock(),
            "traceback": mock.Mock(),
            "fixed_device": lambda: "cpu",
            "start_again": start_again,
            "log": mock.Mock(),
        },
        worker.run: {
            "new_policy": training.new_policy,
            "fresh_state": training.fresh_state,
            "audit": lambda *_, **__: [],
            "lacks_baseline": training.lacks_baseline,
            "train": training.train,
            "make_reward": lambda *_: None,
            "seed_generators": lambda _: None,
            "Generators": mock.Mock(),
            "log": mock.Mock(),
        },
        worker.saves: {
            "LocalFiles": lambda: SimFiles(world.gate),
            "read_checkpoint": training.read_checkpoint,
            "write_checkpoint": training.write_checkpoint,
            "other_environment": lambda _: {},
        },
    }
    with ExitStack() as stack:
        for module, replaced in names.items():
            for name, value in replaced.items():
                stack.enter_context(mock.patch.object(module, name, value))
        yield


__all__ = ["SimStore", "installed"]
