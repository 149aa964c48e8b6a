"""`python -m tests.faults.sim --seeds 2000`, or `--seed N` with a trace of every port call."""

import argparse
import json
import os
import sys
import time
from collections import Counter

from tests.faults.sim.pool import CHECK_HASH_EVERY, outcomes
from tests.faults.sim.run import Outcome, simulator


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--seed", type=int, help="only this one, with a trace")
    parser.add_argument("--budget-min", type=float, default=float("inf"), help="stop after so many minutes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that share the seeds")
    options = parser.parse_args()
    if options.seed is None:
        return _many(options)
    with simulator() as sim:
        return _show(sim.run(options.seed, trace=_say))


def _many(options: argparse.Namespace) -> int:
    began, faults, jobs, bad = time.monotonic(), Counter[str](), Counter[str](), list[int]()
    run = attempts = checked = 0
    seeds = range(options.start, options.start + options.seeds)
    for outcome in outcomes(seeds, options.processes):
        run, attempts = run + 1, attempts + outcome.attempts
        faults, jobs = faults + outcome.faults, jobs + outcome.jobs
        checked += outcome.seed % CHECK_HASH_EVERY == 0
        if outcome.violations:
            bad.append(outcome.seed)
            _show(outcome)
            if not options.keep_going:
                break
        if time.monotonic() - began > 60 * options.budget_min:
            break
    report = {
        "seeds": run,
        "seconds": round(time.monotonic() - began, 1),
        "jobs": dict(sorted(jobs.items())),
        "attempts": attempts,
        "faults": dict(sorted(faults.items())),
        "hashes_checked": checked,
        "failing_seeds": bad,
    }
    _say(json.dumps(report))
    return 1 if bad else 0


def _show(outcome: Outcome) -> int:
    for line in outcome.violations:
        _say(f"seed {outcome.seed}: {line}")
    if outcome.violations:
        _say(f"replay: python -m tests.faults.sim --seed {outcome.seed}")
    else:
        _say(f"seed {outcome.seed}: no violation, hash {outcome.hash}, {dict(outcome.jobs)}")
    return 1 if outcome.violations else 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
