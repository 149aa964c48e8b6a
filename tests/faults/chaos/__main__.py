"""`python -m tests.faults.chaos --rounds 12 [--seed N] [--database sqlite|postgresql|both]`.

Real processes, real faults at random moments, and after each round the invariant checker. The last line is one
JSON object; the exit code is 1 if anything was violated.
"""

import argparse
import json
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.chaos.recovery import percentile
from tests.faults.chaos.rounds import RECOVERY_BOUND_S, Findings, Setting, block, say, undisturbed
from tests.faults.cluster import Postgres
from tests.faults.work import registry

LONGEST_BLOCK = 5


def main() -> int:
    """The command."""
    options = arguments()
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    say(f"seed {seed}")
    folder = Path(tempfile.mkdtemp(prefix="kleash-chaos-"))
    deadline = time.monotonic() + (options.budget_s or float("inf"))
    findings, began = Findings(), time.monotonic()
    models = registry(folder)
    weights = undisturbed(folder / "undisturbed", models)
    postgres = Postgres() if options.database != "sqlite" else None
    try:
        for i, (setting, numbers) in enumerate(blocks(options)):
            if time.monotonic() < deadline:
                block(
                    folder / f"block{i}",
                    models,
                    setting,
                    postgres,
                    weights=weights,
                    seed=seed,
                    numbers=numbers,
                    deadline=deadline,
                    findings=findings,
                )
    finally:
        if postgres is not None:
            postgres.close()
    summary = summarise(findings, seed, time.monotonic() - began)
    good = verdict(summary)
    if good and not options.keep:
        shutil.rmtree(folder)
    else:
        say(f"logs and data in {folder}")
    sys.stdout.write(json.dumps(summary) + "\n")
    return 0 if good else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="number of the first round (replay)")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--append-only", choices=["yes", "no", "both"], default="both", help="of the broker")
    parser.add_argument("--budget-s", type=float, help="no round begins after so many seconds")
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    return parser.parse_args()


def blocks(options: argparse.Namespace) -> Iterator[tuple[Setting, range]]:
    """The rounds, spread over the settings, a few in a row on each."""
    databases = ["sqlite", "postgresql"] if options.database == "both" else [options.database]
    memories = {"both": [True, False], "yes": [True], "no": [False]}[options.append_only]
    settings = [Setting(database, memory) for memory in memories for database in databases]
    length = max(1, min(LONGEST_BLOCK, options.rounds // len(settings)))
    last = options.first + options.rounds
    for i, start in enumerate(range(options.first, last, length)):
        yield settings[i % len(settings)], range(start, min(start + length, last))


def summarise(findings: Findings, seed: int, took_s: float) -> dict[str, Any]:
    """The one JSON object."""
    codes = [item.split(" ", 1)[0] for item in findings.violations]
    p95 = percentile(findings.recoveries, 0.95)
    return {
        "rounds": findings.rounds,
        "faults": dict(sorted(findings.faults.items())),
        "jobs": findings.jobs,
        "requests": findings.requests,
        "lost": codes.count("I1"),
        "duplicated": codes.count("I2") + codes.count("I4"),
        "stuck": len(findings.stuck),
        "violations": len(findings.violations),
        "resumed": findings.disturbed,
        "resumed_identical": findings.identical,
        "recoveries": len(findings.recoveries),
        "recovery_p50_s": _rounded(percentile(findings.recoveries, 0.5)),
        "recovery_p95_s": _rounded(p95),
        "recovery_max_s": _rounded(max(findings.recoveries, default=None)),
        "recovery_bound_s": RECOVERY_BOUND_S,
        "seed": seed,
        "took_s": round(took_s),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def verdict(summary: dict[str, Any]) -> bool:
    """True if nothing was violated."""
    p95 = summary["recovery_p95_s"]
    return (
        summary["violations"] == summary["stuck"] == 0
        and summary["rounds"] > 0
        and summary["resumed"] == summary["resumed_identical"]
        and (p95 is None or p95 <= summary["recovery_bound_s"])
    )


if __name__ == "__main__":
    sys.exit(main())
