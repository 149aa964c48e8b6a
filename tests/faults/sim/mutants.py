"""`python -m tests.faults.sim.mutants [NAME…]`: can the simulation see? Each mutant must fail within a budget.

A mutant is a private copy of the sources with one line changed for the worse; the simulation runs on it until a
seed shows a violation. Prints a line each, and how many survived.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("api", "jobs", "rlhf_core", "worker", "tests")
SEEDS = 2000
WAIT_S = 580


class Mutant(NamedTuple):
    """`old` occurs exactly once in `file`."""

    file: str
    old: str
    new: str


MUTANTS = {
    "the fence forgets the attempt": Mutant(
        "jobs/sql_base.py",
        "fence = (jobs.c.attempt == attempt) & (jobs.c.status == Status.RUNNING)",
        "fence = jobs.c.status == Status.RUNNING",
    ),
    "the fence forgets the status": Mutant(
        "jobs/sql_base.py",
        "fence = (jobs.c.attempt == attempt) & (jobs.c.status == Status.RUNNING)",
        "fence = jobs.c.attempt == attempt",
    ),
    "claim takes what is paused": Mutant(
        "jobs/sql_runs.py",
        "waiting = (jobs.c.status == Status.QUEUED) & (jobs.c.epoch == epoch)",
        'waiting = jobs.c.status.in_(["queued", "paused"]) & (jobs.c.epoch == epoch)',
    ),
    "claim takes what runs": Mutant(
        "jobs/sql_runs.py",
        "waiting = (jobs.c.status == Status.QUEUED) & (jobs.c.epoch == epoch)",
        'waiting = jobs.c.status.in_(["queued", "running"]) & (jobs.c.epoch == epoch)',
    ),
    "claim keeps the attempt": Mutant(
        "jobs/sql_runs.py", '"attempt": jobs.c.attempt + 1,', '"attempt": jobs.c.attempt,'
    ),
    "the reaper does not look again": Mutant(
        "jobs/sql_store.py",
        "still = and_(jobs.c.attempt == attempt, self._expired())",
        "still = jobs.c.attempt > 0",
    ),
    "no message is sent twice": Mutant("jobs/sql_store.py", "or_(unsent, unclaimed)", "unsent"),
    "nothing is reaped": Mutant(
        "jobs/sql_store.py",
        "lapsed = or_(jobs.c.lease_until.is_(None), ",
        "lapsed = and_(jobs.c.lease_until.is_(None), ",
    ),
    "a cancelled run is queued again": Mutant(
        "jobs/states.py",
        "    if desired is Desired.CANCEL:\n        return Status.CANCELLED\n    if crash",
        "    if crash",
    ),
    "one crash too many": Mutant(
        "jobs/states.py", "if crash_count >= max_attempts:", "if crash_count > max_attempts:"
    ),
    "the lease outlives the run": Mutant(
        "jobs/sql_runs.py", '"worker": None, "lease_until": None}', '"worker": None}'
    ),
    "a key makes a job each time": Mutant(
        "jobs/sql_idempotency.py", "if first.rowcount > 0:", "if first.rowcount >= 0:"
    ),
    "events are counted, not numbered": Mutant(
        "jobs/sql_base.py",
        "last.event_seq - len(events), events)",
        "last.event_seq - len(events) + 1, events)",
    ),
    "files are not synced": Mutant(
        "jobs/files.py", "                sync(Path(where, name))\n", "                pass\n"
    ),
    "the rename is not synced": Mutant("jobs/files.py", "final.parents[:LEVELS]", "final.parents[:0]"),
    "only the rename is synced": Mutant("jobs/files.py", "final.parents[:LEVELS]", "final.parents[:1]"),
    "the folder goes before the row": Mutant(
        "worker/saves.py",
        "        names = [c.name for c in checkpoints]\n",
        "        names = [c.name for c in checkpoints]\n"
        "        for c in checkpoints:\n            self._files.remove_folder(self.folder(c.path))\n",
    ),
    "nobody tidies": Mutant("worker/run.py", "        self.saves.tidy()\n", ""),
    "a child may outlive its lease": Mutant("worker/supervisor.py", "LEASE_SHARE = 0.8", "LEASE_SHARE = 1.5"),
    "a lost run goes on": Mutant(
        "worker/supervisor.py",
        "            except LeaseLost:\n                self.lost = True\n",
        "            except LeaseLost:\n",
    ),
}


def main() -> int:
    """The table."""
    chosen = sys.argv[1:] or list(MUTANTS)
    survived = [name for name in chosen if not _killed(name)]
    sys.stdout.write(f"{len(chosen)} mutants, {len(survived)} survived: {survived}\n")
    return 1 if survived else 0


def _killed(name: str) -> bool:
    mutant = MUTANTS[name]
    with tempfile.TemporaryDirectory(prefix="kleash-mutant-") as folder:
        for room in ROOMS:
            shutil.copytree(ROOT / room, Path(folder, room), ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder, mutant.file)
        text = file.read_text()
        if text.count(mutant.old) != 1:
            sys.stdout.write(f"{name}: its line is not there any more\n")
            return False
        file.write_text(text.replace(mutant.old, mutant.new))
        began = time.monotonic()
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.faults.sim",
                "--seeds",
                str(SEEDS),
                "--budget-min",
                str(WAIT_S / 60),
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": folder},
            capture_output=True,
            text=True,
        )
    seconds = time.monotonic() - began
    seed = re.search(r"^seed (\d+): (.*)", ended.stdout, re.MULTILINE)
    seen = f"seed {seed[1]}: {seed[2][:100]}" if seed else (ended.stdout + ended.stderr)[-300:]
    sys.stdout.write(f"{name}: {'killed' if seed else 'SURVIVED'} after {seconds:.0f} s, {seen}\n")
    sys.stdout.flush()
    return seed is not None


if __name__ == "__main__":
    sys.exit(main())
