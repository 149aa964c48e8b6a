"""One deployment that is disturbed for some rounds, and what the rounds found."""

import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.faults.callers import Caller, NobodyAnswers, Promises, unasked
from tests.faults.chaos.injection import Fault, inject, possible
from tests.faults.chaos.load import Load
from tests.faults.chaos.recovery import Observer, recoveries
from tests.faults.checker import changed, freeze, violations
from tests.faults.checker_files import weights_sha256
from tests.faults.checker_rows import Database, read_database
from tests.faults.cluster import LEASE_S, Cluster, Postgres, until
from tests.faults.work import job

JOBS_A_ROUND, FAULTS_A_ROUND = 2, 4
LONGEST_PAUSE_S = 3.0
SETTLE_S = 120.0
RECOVERY_BOUND_S = LEASE_S + 5


class Setting(NamedTuple):
    """The deployment of a round."""

    database: str  # sqlite or postgresql
    append_only: bool  # of the broker's memory

    def __str__(self) -> str:
        return f"{self.database}, broker {'with' if self.append_only else 'without'} append-only file"


@dataclass
class Findings:
    """Sums over all rounds."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    disturbed: int = 0  # succeeded after more than one attempt
    identical: int = 0  # of these, with the undisturbed run's weights
    stuck: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    requests: int = 0


class Deployment:
    """A cluster with its callers, for some rounds in a row."""

    def __init__(
        self,
        folder: Path,
        registry: Path,
        setting: Setting,
        postgres: Postgres | None,
        weights: str,
        seed: int,
    ) -> None:
        on_postgres = setting.database == "postgresql"
        self.cluster = Cluster(
            folder,
            registry,
            postgres=postgres if on_postgres else None,
            apis=2 if on_postgres else 1,
            workers=2,
            append_only=setting.append_only,
        )
        self.promises = Promises()
        self.caller = Caller(self.cluster.urls, self.promises)
        self._weights, self._seed = weights, seed

    def round(self, number: int, findings: Findings) -> list[str]:
        """One round; its violations, which `findings` gets too."""
        rng = random.Random(f"{self._seed}:{number}")
        load = Load(self.caller, rng, jobs=JOBS_A_ROUND, pauses=rng.random() < 0.7)
        observer = Observer(self.cluster.url)
        load.start()
        faults = list(self._disturb(rng, load))
        load.stop()
        until(self.cluster.whole, "the cluster is whole again", patience_s=SETTLE_S)
        found = list(load.problems)
        try:
            stuck = load.settle(patience_s=SETTLE_S)
        except NobodyAnswers as error:
            stuck = [str(error)]
        findings.stuck += stuck
        until(lambda: stuck or not self.cluster.training(), "no child trains any more")
        observer.close()
        found += self._check(load, faults, observer, findings)
        findings.rounds += 1
        findings.jobs += len(load.ids)
        findings.faults += Counter(fault.kind for fault in faults)
        findings.violations += found
        return found + [f"stuck {item}" for item in stuck]

    def _disturb(self, rng: random.Random, load: Load) -> Iterable[Fault]:
        until(lambda: any(load.steps.values()), "a job has done a step")
        kinds = possible(self.cluster)
        for _ in range(FAULTS_A_ROUND):
            time.sleep(rng.uniform(0, LONGEST_PAUSE_S))
            kind = rng.choice(kinds)
            fault = inject(self.cluster, kind, rng)
            if fault is not None:
                say(
                    f"    {kind}" + (f" for {fault.until - fault.at:.1f} s" if fault.until > fault.at else "")
                )
                yield fault

    def _check(
        self, load: Load, faults: Sequence[Fault], observer: Observer, findings: Findings
    ) -> list[str]:
        database = read_database(self.cluster.url)
        expected = {
            row.id: self._weights
            for job_id in load.ids
            if job_id not in load.cancelled and (row := database.jobs.get(job_id)) is not None
        }
        found = violations(
            self.cluster.url,
            self.cluster.artifacts,
            created=self.promises.created,
            keys=self.promises.keys,
            weights=expected,
        )
        found += [*unasked(self.promises, database.jobs), *self.promises.failures]
        self.promises.failures.clear()
        found += [
            f"{job_id}: {status}, not succeeded: {database.jobs[job_id].row['error']}"
            for job_id in expected
            if (status := database.jobs[job_id].row["status"]) != "succeeded"
        ]
        self._count_identical(expected, database, findings)
        for fault, job_id, waited in recoveries(
            faults, database, observer, workers=len(self.cluster.workers)
        ):
            findings.recoveries.append(waited)
            if waited > RECOVERY_BOUND_S:
                say(f"    {job_id} stood still for {waited:.1f} s after {fault.kind} at {fault.at:.1f}")
        findings.requests += sum(self.promises.served.values())
        self.promises.served.clear()
        return found

    def _count_identical(self, expected: Iterable[str], database: Database, findings: Findings) -> None:
        for job_id in expected:
            row = database.jobs[job_id]
            if row.row["status"] == "succeeded" and row.row["attempt"] > 1:
                findings.disturbed += 1
                final = next(c for c in row.checkpoints if c["name"] == "final")
                findings.identical += weights_sha256(self.cluster.artifacts / final["path"]) == self._weights


def undisturbed(folder: Path, registry: Path) -> str:
    """The sha256 of the weights of a run that nobody disturbs."""
    with Cluster(folder, registry).running() as cluster:
        caller = Caller(cluster.urls, Promises())
        job_id = caller.create(job())
        until(lambda: caller.get(job_id)["done"], "the undisturbed run ends", patience_s=SETTLE_S)
        seen = caller.get(job_id)
        if seen["status"] != "succeeded":
            raise RuntimeError(f"the undisturbed run {seen['status']}: {seen['error']}")
        caller.close()
        return weights_sha256(cluster.artifacts / job_id / str(seen["attempt"]) / "final")


def block(
    folder: Path,
    registry: Path,
    setting: Setting,
    postgres: Postgres | None,
    *,
    weights: str,
    seed: int,
    numbers: Iterable[int],
    deadline: float,
    findings: Findings,
) -> None:
    """Some rounds on one deployment; what had ended before may not change in the rounds after."""
    deployment = Deployment(folder, registry, setting, postgres, weights, seed)
    with deployment.cluster.running() as cluster:
        frozen = freeze(cluster.url)
        for number in numbers:
            if time.monotonic() > deadline:
                break
            began = time.monotonic()
            say(f"round {number} ({setting})")
            found = deployment.round(number, findings)
            late = changed(frozen, cluster.url)
            findings.violations += late
            frozen = freeze(cluster.url)
            for item in found + late:
                say(f"    VIOLATION {item}")
            if found or late:
                say(f"    logs in {folder}; replay: {replay(seed, number, setting)}")
            say(f"    {time.monotonic() - began:.0f} s")
        deployment.caller.close()
    left = violations(deployment.cluster.url, deployment.cluster.artifacts, data=deployment.cluster.data)
    findings.violations += [item for item in left if "process" in item]


def replay(seed: int, number: int, setting: Setting) -> str:
    """The command that does this round's plan again."""
    memory = "yes" if setting.append_only else "no"
    return (
        f"python -m tests.faults.chaos --seed {seed} --first {number} --rounds 1 "
        f"--database {setting.database} --append-only {memory}"
    )


def say(line: str) -> None:
    """Progress goes to stderr: stdout is for the one JSON object."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
