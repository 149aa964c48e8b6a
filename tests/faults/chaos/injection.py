"""The faults: which processes get which signal, when, and for how long."""

import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass

from tests.faults.cluster import Cluster, Part, Service
from tests.faults.processes import children, command, descendants

# what may be hit by kill -9; `tree` is a worker with all its descendants
KILLED = ("api", "celery main", "pool child", "training child", "tree", "valkey", "postgresql")
# what may be stopped (SIGSTOP) and go on later
STOPPED = ("api", "celery main", "pool child", "training child", "tree", "valkey")
LONGEST_DOWN_S = 2.0
LONGEST_STOP_S = 5.0


@dataclass
class Fault:
    """One fault as it was done. Times are the database's, which is this machine's."""

    kind: str  # `kill tree`, `stop api`, …
    at: float
    until: float  # when the cause was gone: a stopped process went on; for a kill, `at`
    jobs: list[str]  # those that were running on what was hit
    of_all: bool = False  # of a server that every job needs


def possible(cluster: Cluster) -> list[str]:
    """The kinds that this cluster can suffer."""
    kinds = [f"kill {what}" for what in KILLED if what != "postgresql" or cluster.postgres]
    return [*kinds, *(f"stop {what}" for what in STOPPED), "terminate worker"]


def inject(cluster: Cluster, kind: str, rng: random.Random) -> Fault | None:
    """Do it, and for a stop wait until it is over; None if there is nothing to hit now."""
    verb, _, what = kind.partition(" ")
    if what in ("valkey", "postgresql", "api"):
        return _on_server(cluster, kind, rng)
    training = cluster.training()
    busy = [w for w in cluster.workers if any(pid in training for pid in _below(w))]
    workers = busy or [w for w in cluster.workers if w.alive()]
    if not workers or (what == "training child" and not busy):
        return None
    worker = rng.choice(workers)
    pids = _pids(worker, what, training)
    if not pids:
        return None
    if what == "celery main" and verb == "stop":
        jobs = []  # the run itself goes on
    else:
        jobs = [training[pid] for pid in _below(worker) if pid in training]
    if verb == "terminate":
        cluster.start_after[worker.name] = time.monotonic()
        return _signal(kind, [worker.pid()], signal.SIGTERM, jobs)
    if verb == "kill":
        _stay_down(cluster, worker, rng)
        return _signal(kind, pids, signal.SIGKILL, jobs)
    return _stop(kind, pids, rng, jobs)


def _on_server(cluster: Cluster, kind: str, rng: random.Random) -> Fault:
    verb, _, what = kind.partition(" ")
    part: Part = rng.choice(cluster.apis) if what == "api" else cluster.valkey
    if what == "postgresql":
        assert cluster.postgres is not None
        part = cluster.postgres
    jobs = list(cluster.training().values())
    if verb == "kill":
        _stay_down(cluster, part, rng)
        at = time.time()
        part.kill()
        return Fault(kind, at, at, jobs, of_all=True)
    fault = _stop(kind, [part.pid()], rng, jobs)
    fault.of_all = True
    return fault


def _below(worker: Service) -> list[int]:
    return descendants(worker.pid()) if worker.alive() else []


def _pids(worker: Service, what: str, training: dict[int, str]) -> list[int]:
    """Whom to signal; of a tree everybody, parents first."""
    if what == "training child":
        return [pid for pid in _below(worker) if pid in training][:1]
    if what == "pool child":
        return [pid for pid in children(worker.pid()) if "worker.app" in command(pid)][:1]
    return [worker.pid(), *_below(worker)] if what == "tree" else [worker.pid()]


def _stay_down(cluster: Cluster, part: Part, rng: random.Random) -> None:
    cluster.start_after[part.name] = time.monotonic() + rng.uniform(0, LONGEST_DOWN_S)


def _signal(kind: str, pids: list[int], number: signal.Signals, jobs: list[str]) -> Fault:
    at = time.time()
    _send(pids, number)
    return Fault(kind, at, at, jobs)


def _stop(kind: str, pids: list[int], rng: random.Random, jobs: list[str]) -> Fault:
    at = time.time()
    _send(pids, signal.SIGSTOP)
    time.sleep(rng.uniform(0.3, LONGEST_STOP_S))
    _send(pids, signal.SIGCONT)
    return Fault(kind, at, time.time(), jobs)


def _send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
