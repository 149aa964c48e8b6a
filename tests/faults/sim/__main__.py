"""`python -m tests.faults.sim --seeds 2000`, or `--seed N` with a trace of every port call."""

import argparse
import json
import sys
import time
from collections import Counter

from tests.faults.sim.run import Outcome, Simulator, simulator

CHECK_HASH_EVERY = 100


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--seed", type=int, help="only this one, with a trace")
    parser.add_argument("--budget-min", type=float, default=float("inf"), help="stop after so many minutes")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args()
    with simulator() as sim:
        if options.seed is not None:
            return _show(sim.run(options.seed, trace=_say))
        return _many(sim, options)


def _many(sim: Simulator, options: argparse.Namespace) -> int:
    began, faults, jobs, bad = time.monotonic(), Counter[str](), Counter[str](), list[int]()
    run = attempts = checked = 0
    for seed in range(options.start, options.start + options.seeds):
        outcome = sim.run(seed)
        run, attempts = run + 1, attempts + outcome.attempts
        faults, jobs = faults + outcome.faults, jobs + outcome.jobs
        if seed % CHECK_HASH_EVERY == 0:
            checked += 1
            again = sim.run(seed)
            if again.hash != outcome.hash:
                outcome.violations.append(f"seed {seed} is not reproducible: {outcome.hash}, {again.hash}")
        if outcome.violations:
            bad.append(seed)
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
