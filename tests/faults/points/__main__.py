"""`python -m tests.faults.points [--only NAME[:N],…]`: every fault point once, with real processes.

Programs that need no stack (schema, folders) are killed at every passing of their points. The stack's points are
armed together; each kills one process once (API, pool child or training child), the keeper starts what died, and
the jobs must end as the undisturbed run's, by the invariant checker. A point that nothing reaches is a failure.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jobs.faults import names
from tests.faults.chaos.rounds import undisturbed
from tests.faults.cluster import Postgres
from tests.faults.points.keys import KEYS, kill_keys
from tests.faults.points.lone import FILES, MIGRATE, kill_files, kill_migrate, points_of
from tests.faults.points.stack import run
from tests.faults.points.uploads import UPLOADS, kill_uploads
from tests.faults.work import registry

# At a later passing there is more to lose; the others strike at the first.
LATER = {
    "commit.record_step": 3,
    "commit.record_checkpoint": 2,
    "commit.heartbeat": 2,
    "rename": 2,
    "fsync": 4,
}
# Hours pass before these: tests/jobs/test_deleted_folders.py and tests/contracts have them.
LATE = ["commit.forget_deleted", "commit.forget_expired_keys", "commit.forget_deliveries"]
# The stack's run has no webhook: tests/api/test_webhooks.py kills the sender at each of its points.
WEBHOOKS = [
    *("commit.create_webhook", "commit.change_webhook", "commit.rotate_webhook", "commit.delete_webhook"),
    *("commit.redeliver", "commit.test_webhook", "commit.claim_delivery", "commit.end_delivery"),
]
NOT_IN_THE_STACK = {
    *points_of(MIGRATE),
    *points_of(KEYS),
    *points_of(UPLOADS),
    *points_of(["rename.replaced"]),
    *points_of(LATE),
    *points_of(WEBHOOKS),
    "webhook.sent",
}


def passing(name: str) -> int:
    """At which passing the stack's run kills."""
    return LATER.get(name.rpartition(".")[0], 1)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.points", description=__doc__)
    parser.add_argument("--only", help="NAME or NAME:N, several separated by commas")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else names()
    armed = {name: int(n) if n else passing(name) for name, _, n in (item.partition(":") for item in chosen)}

    folder, began = Path(tempfile.mkdtemp(prefix="kleash-points-")), time.monotonic()
    problems = list(kill_files(folder / "files", [n for n in armed if n in points_of(FILES)]))
    problems += kill_migrate(folder / "migrate", [n for n in armed if n in points_of(MIGRATE)])
    problems += kill_keys(folder / "keys", [n for n in armed if n in points_of(KEYS)])
    problems += kill_uploads(folder / "uploads", [n for n in armed if n in points_of(UPLOADS)])
    in_stack = {name: n for name, n in armed.items() if name not in NOT_IN_THE_STACK}
    if in_stack:
        problems += in_the_stack(folder, in_stack, options.database)
    for problem in problems:
        say(f"VIOLATION {problem}")
    if problems:
        say(f"logs and data in {folder}; replay: python -m tests.faults.points --only {','.join(chosen)}")
    elif not options.keep:
        shutil.rmtree(folder)
    say(f"{len(armed)} points, {len(problems)} violations, {time.monotonic() - began:.0f} s")
    return 1 if problems else 0


def in_the_stack(folder: Path, armed: dict[str, int], database: str) -> list[str]:
    """The problems of one run of the stack with these points."""
    models = registry(folder)
    weights = undisturbed(folder / "undisturbed", models)
    postgres = Postgres() if database == "postgresql" else None
    try:
        outcome = run(folder / "stack", models, armed, postgres=postgres, weights=weights)
    finally:
        if postgres is not None:
            postgres.close()
    for name, process in sorted(outcome.struck.items()):
        say(f"{name:34} {process}")
    return outcome.problems


def say(line: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
