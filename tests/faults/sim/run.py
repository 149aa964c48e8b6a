"""One seed: a deployment, some jobs, some minutes of trouble, some minutes of peace, and then the checker."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, event

from jobs.migrate import upgrade
from jobs.schema import metadata
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from tests.faults.checker import violations
from tests.faults.sim.actors import (
    CLIENTS,
    MOST_REPLICAS,
    MOST_WORKERS,
    Api,
    Client,
    Site,
    shut_down,
    start_worker,
)
from tests.faults.sim.disk import Disk
from tests.faults.sim.install import installed
from tests.faults.sim.kernel import World
from tests.faults.sim.ports import Gate, Queue, Spy
from tests.faults.sim.training import final_weights_sha256, metrics_of, weights_at

TROUBLE_S, PEACE_S = 28.0, 900.0
LEASE_S = 6.0
RATES = {  # per opportunity, in seeds that have this kind at all
    "kill before": 0.01,
    "kill after": 0.01,
    "kill at commit": 0.01,
    "freeze": 0.01,
    "store error before": 0.01,
    "store error after": 0.01,
    "broker error": 0.1,
    "drop": 0.2,
    "duplicate": 0.3,
    "delay": 0.2,
    "hang": 0.03,
    "nan": 0.03,
    "reward error": 0.01,
}
DIRECTED = ("clock jump", "power cut", "shut down", "store down", "broker down", "broker flush", "kill tree")


@dataclass(frozen=True)
class Outcome:
    """What one seed came to."""

    seed: int
    hash: str
    violations: list[str]
    faults: Counter[str]
    jobs: Counter[str]  # by status
    attempts: int


class YieldingStore(SqlStore):
    """Between the two transactions of one method, others may run."""

    pause: Callable[[], None]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with super().reading() as connection:
            yield connection
        self.pause()


class Simulator:
    """Runs seeds one after the other on one database file below `folder`, which should be a tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/sim.db"
        upgrade(self.url)
        self.world: World
        self.store = YieldingStore(self.url, now=lambda: self.world.time + self.world.db_offset)
        self.store.pause = lambda: self.world.pause()
        event.listen(self.store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous = OFF"))
        self.settings = _settings(folder)
        self.spy = Spy(folder / "sim.db")

    def close(self) -> None:
        self.spy.close()
        self.store.close()

    def run(self, seed: int, trace: Callable[[str], None] | None = None) -> Outcome:
        """The whole life of one world."""
        self._clean()
        self.spy.down_until = 0.0
        world = self.world = World(seed, trace=trace)
        world.gate = Gate(world)
        site = Site(world, self.settings, self.store, self.spy, Queue(world), self.folder)
        disk = Disk(self.settings.artifacts)
        with installed(world, disk, self.settings, site.port):
            world.run(lambda: _direct(site, disk))
        found = [*world.faults, *self._checked(site)]
        rows = self.spy.rows("SELECT status, attempt FROM jobs")
        return Outcome(
            seed=seed,
            hash=self._hash(world),
            violations=found,
            faults=world.counts,
            jobs=Counter(status for status, _ in rows),
            attempts=sum(attempt for _, attempt in rows),
        )

    def _clean(self) -> None:
        with self.store.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        shutil.rmtree(self.settings.data, ignore_errors=True)
        self.settings.artifacts.mkdir(parents=True)

    def _checked(self, site: Site) -> list[str]:
        specs = {
            job_id: PPOSpec.model_validate_json(spec)
            for job_id, spec in self.spy.rows("SELECT id, spec FROM jobs")
        }
        found = violations(
            self.url,
            self.settings.artifacts,
            created=site.promised,
            keys=site.keys,
            weights={job_id: final_weights_sha256(spec) for job_id, spec in specs.items()},
            steady_clock=site.world.counts["clock jump"] == 0,
        )
        for job_id, step, metrics in self.spy.rows("SELECT job_id, step, metrics FROM job_metrics"):
            if json.loads(metrics) != metrics_of(weights_at(specs[job_id].config, step)):
                found.append(f"I6 {job_id}: other metrics at step {step} than an undisturbed run's")
        return found

    def _hash(self, world: World) -> str:
        """Of everything that happened and everything that is stored, but for paths."""
        digest = hashlib.blake2b(world.hash().encode(), digest_size=16)
        for query in (
            "SELECT id, status, attempt, epoch, version, step, created_at, finished_at FROM jobs ORDER BY id",
            "SELECT job_id, seq, type, attempt, created_at, data FROM job_events ORDER BY job_id, seq",
            "SELECT job_id, step, metrics, attempt, created_at FROM job_metrics ORDER BY job_id, step",
            "SELECT job_id, name, sha256, attempt FROM job_checkpoints ORDER BY job_id, name",
        ):
            digest.update(repr(self.spy.rows(query)).encode())
        return digest.hexdigest()


@contextmanager
def simulator() -> Iterator[Simulator]:
    """In a folder of its own, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(
            prefix="kleash-sim-", dir=memory if memory.is_dir() else None
        ) as name:
            made = Simulator(Path(name))
            yield made
            made.close()
    finally:
        logging.disable(logging.NOTSET)


def _settings(folder: Path) -> Settings:
    models = folder / "models.json"
    models.write_text(json.dumps({"models": {"m": {"source": "/models/m"}}}))
    return Settings(
        data=folder / "data",
        models_file=models,
        lease_s=LEASE_S,
        heartbeat_s=2.0,
        dispatch_every_s=6.0,
        resend_after_s=8.0,
        reap_every_s=4.0,
        stop_grace_s=3.0,
        stall_after_s=12.0,
    )


def _specs(world: World) -> list[PPOSpec]:
    rng = world.rng
    specs = []
    for _ in range(rng.randint(1, 2)):
        steps, every, keep, seed = rng.randint(1, 6), rng.randint(1, 3), rng.randint(1, 3), rng.randrange(3)
        limits = {"max_attempts": rng.randint(2, 5)}
        if rng.random() < 0.1:
            limits["max_runtime_s"] = rng.uniform(3.0, 12.0)
        specs.append(
            PPOSpec.model_validate(
                {
                    "priority": rng.randint(0, 9),
                    "limits": limits,
                    "config": {
                        "model": {"name": "m"},
                        "data": {"prompts": ["a"]},
                        "reward": {"kind": "length", "target_tokens": 3},
                        "optimization": {"steps": steps},
                        "checkpoint": {"every_steps": every, "keep_last": keep},
                        "seed": seed,
                    },
                }
            )
        )
    return specs


def _direct(site: Site, disk: Disk) -> None:
    """The scenario."""
    world = site.world
    rng = world.rng
    peaceful = rng.random() < 0.05
    world.budget = 0 if peaceful else rng.randint(2, 25)
    scale = rng.choice([0.5, 1.0, 2.0])
    world.rates = {kind: rate * scale for kind, rate in RATES.items() if rng.random() < 0.6}
    directed = [kind for kind in DIRECTED if rng.random() < 0.4]
    for number in range(rng.randint(1, MOST_REPLICAS)):
        site.apis.append(Api(site, f"api{number}", 0.0))
    for number in range(rng.randint(1, MOST_WORKERS)):
        start_worker(site, f"worker{number}", 0.1)
    for number in range(CLIENTS):
        Client(site, number, _specs(world))
    while world.time < TROUBLE_S:
        world.sleep(rng.expovariate(1 / 5.0))
        if directed and world.budget > 0 and not peaceful:
            world.budget -= 1
            kind = rng.choice(directed)
            world.counts[kind] += 1
            _do(kind, site, disk)
    _make_peace(site)
    while world.time < TROUBLE_S + PEACE_S and not _settled(site):
        world.sleep(2.0)
    if not _settled(site):
        stuck = site.spy.rows("SELECT id, status, desired, attempt, epoch FROM jobs")
        world.fault(f"not settled after {PEACE_S:.0f} s of peace: {stuck}, {site.busy_clients} clients busy")
    elif peaceful:
        _undisturbed(site)


def _do(kind: str, site: Site, disk: Disk) -> None:
    """A fault that is nobody's port call."""
    world, rng = site.world, site.world.rng
    world.record(f"== {kind}")
    seconds = rng.uniform(0.5, 3 * LEASE_S)
    match kind:
        case "clock jump":
            world.db_offset += rng.choice([-1.0, 1.0]) * seconds
            world.clock_jumped_at = world.time
        case "power cut":
            for worker in list(site.workers):
                world.kill(worker)
            disk.cut(rng)
        case "shut down":
            shut_down(site, rng.choice(site.workers))
        case "kill tree":
            world.kill(rng.choice(site.workers))
        case "store down":
            site.spy.down_until = world.time + seconds
        case "broker down":
            site.queue.down_until = world.time + seconds
        case "broker flush":
            site.queue.messages.clear()


def _make_peace(site: Site) -> None:
    world = site.world
    world.record("== peace")
    world.calm = True
    site.spy.down_until = site.queue.down_until = 0.0
    for process in world.processes:
        process.frozen_until = 0.0


def _settled(site: Site) -> bool:
    """Every job has ended, or is paused because a client asked; no client waits, no child runs."""
    waiting = site.spy.rows("SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')")
    return waiting == [(0,)] and site.busy_clients == 0 and not any(w.live_children for w in site.workers)


def _undisturbed(site: Site) -> None:
    """Without a fault every job is run exactly once, unless its client stopped it."""
    odd = site.spy.rows(
        "SELECT id, status, error FROM jobs WHERE status = 'failed' AND error NOT LIKE '%\"timeout\"%'"
    )
    if odd:
        site.world.fault(f"failed in a world without faults: {odd}")
