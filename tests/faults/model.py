"""`python -m tests.faults.model --runs 600 --steps 50 [--seed N] [--database sqlite|postgresql]`

Random histories of jobs against the model (model_machine.py). The last line is one JSON object; a failure prints
the shortest history that shows it, and the command that finds it again.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
from hypothesis import Phase
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import event

from jobs.migrate import upgrade
from tests.faults.model_actors import LateReaper, VirtualClock
from tests.faults.model_machine import StoreMachine

MEMORY = Path("/dev/shm")


@contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of a migrated database that nobody else uses: in memory where the system has room there."""
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="kl-model-", dir=memory) as place:
        if kind == "sqlite":
            url = f"sqlite:///{place}/kleash.db"
            upgrade(url)
            yield url
            return
        from tests.postgres import start_server

        server = start_server(Path(place, "data"))
        try:
            url = server.get_uri()
            upgrade(url)
            yield url
        finally:
            server.cleanup()


@contextmanager
def machine(url: str, kind: type[LateReaper] = LateReaper) -> Iterator[type[StoreMachine]]:
    """The machine on this database."""
    clock = VirtualClock()
    store = kind(url, now=clock)
    if store.engine.dialect.name == "sqlite":
        event.listen(store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous = OFF"))
    try:
        yield type("Jobs", (StoreMachine,), {"store": store, "clock": clock, "fired": Counter()})
    finally:
        store.close()


def run(jobs: type[StoreMachine], *, runs: int, steps: int, seed: int, shrink: bool = True) -> None:
    """So many random histories of so many calls. Raises what the machine asserts, after shrinking it."""
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    settings = hypothesis.settings(
        max_examples=runs,
        stateful_step_count=steps,
        phases=phases,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(hypothesis.seed(seed)(jobs), settings=settings)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.model")
    parser.add_argument("--runs", type=int, default=600)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.randrange(2**31)
    replay = "python -m tests.faults.model " + " ".join(
        f"--{name} {value}" for name, value in vars(options).items()
    )
    sys.stdout.write(f"{replay}\n")
    sys.stdout.flush()
    began = time.monotonic()
    with database(options.database) as url, machine(url) as jobs:
        try:
            run(jobs, runs=options.runs, steps=options.steps, seed=options.seed)
        except BaseException:
            sys.stderr.write(f"again: {replay}\n")
            raise
    measured = {"violations": 0, "calls": jobs.fired["call"], "seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(vars(options) | measured | {"seen": dict(sorted(jobs.fired.items()))}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
