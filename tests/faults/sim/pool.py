"""Seeds shared between processes, each with a simulator of its own."""

import atexit
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from tests.faults.sim.run import Outcome, Simulator, simulator

CHECK_HASH_EVERY = 100

_simulator: Simulator


def outcomes(seeds: Sequence[int], processes: int) -> Iterator[Outcome]:
    """In the order of the seeds; every hundredth is run twice, and its two hashes must agree."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_open) as pool:
        try:
            yield from pool.map(_run, seeds, chunksize=4)
        finally:
            pool.shutdown(cancel_futures=True)


def _open() -> None:
    global _simulator
    until_exit = ExitStack()
    _simulator = until_exit.enter_context(simulator())
    atexit.register(until_exit.close)


def _run(seed: int) -> Outcome:
    outcome = _simulator.run(seed)
    if seed % CHECK_HASH_EVERY == 0 and (again := _simulator.run(seed)).hash != outcome.hash:
        outcome.violations.append(f"seed {seed} is not reproducible: {outcome.hash}, {again.hash}")
    return outcome
