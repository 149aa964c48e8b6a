"""`python -m tests.faults.soak --budget-min 30 [--seed N]`: every long suite, within the budget.

In order: fault points, broker and shutdown, the HTTP contract and its hostile users, bad runs, simulation, model,
resume matrix; then chaos with the time that is left. A suite that would not fit any more is left out and said so.
The last line is `N passed, N failed`: suites. The seed is the commit's unless one is given: whoever soaks the same
commit again does the same.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
RUNS_A_S = 4  # histories of 50 steps that the model test does in a second, on a machine with other work too
SEEDS_A_S = 8
HOSTILE = (
    "tests/api/test_hostile_paths.py",
    "tests/contracts/test_secrets.py",
    "tests/contracts/test_celery.py",
)


class Suite(NamedTuple):
    """One command. `share` of the whole budget is what it gets, at least `least_s`."""

    name: str
    share: float
    least_s: float
    command: Callable[[int, float], Sequence[str]]  # seed, seconds → arguments of python


def suites() -> list[Suite]:
    """What runs, in order; chaos takes the rest."""
    here = "tests.faults"
    return [
        Suite("fault points", 0.2, 240, lambda seed, s: ("-m", f"{here}.points")),
        Suite(
            "broker and shutdown",
            0.1,
            90,
            lambda seed, s: ("-m", "pytest", "-q", "tests/faults/test_broker.py"),
        ),
        Suite(
            "HTTP contract, generated",
            0.12,
            200,
            lambda seed, s: ("-m", "tests.http_contract.generated", "--cases", "2000", "--seed", str(seed)),
        ),
        Suite(
            "HTTP contract, raw",
            0.06,
            90,
            lambda seed, s: ("-m", "tests.http_contract.raw", "--cases", "3000", "--seed", str(seed)),
        ),
        Suite("hostile users", 0.12, 200, lambda seed, s: ("-m", "pytest", "-q", *HOSTILE)),
        Suite("bad runs", 0.08, 90, lambda seed, s: ("-m", f"{here}.bad_runs")),
        Suite(
            "simulation",
            0.1,
            20,
            lambda seed, s: (
                *("-m", f"{here}.sim", "--start", str(seed)),
                *("--seeds", str(int(SEEDS_A_S * s)), "--budget-min", f"{0.9 * s / 60:.2f}"),
            ),
        ),
        Suite(
            "model, SQLite",
            0.08,
            20,
            lambda seed, s: (*model(seed, s), "--database", "sqlite"),
        ),
        Suite(
            "model, PostgreSQL",
            0.08,
            30,
            lambda seed, s: (*model(seed, s / 2), "--database", "postgresql"),
        ),
        Suite(
            "resume matrix",
            0.15,
            60,
            lambda seed, s: ("-m", f"{here}.resume", "--seed", str(seed), "--budget-s", str(int(0.8 * s))),
        ),
        Suite(
            "chaos",
            1.0,
            150,
            lambda seed, s: (
                *("-m", f"{here}.chaos", "--rounds", "1000", "--seed", str(seed)),
                *("--budget-s", str(int(s - 100))),  # the last round runs to its end
            ),
        ),
    ]


def model(seed: int, seconds: float) -> Sequence[str]:
    """As many histories as surely fit."""
    runs = max(5, int(seconds * RUNS_A_S))
    return ("-m", "tests.faults.model", "--runs", str(runs), "--steps", "50", "--seed", str(seed))


def run(suite: Suite, seed: int, seconds: float) -> bool:
    """True if it ended well in time."""
    arguments = suite.command(seed, seconds)
    say(f"=== {suite.name}, at most {seconds:.0f} s: python {' '.join(arguments)}")
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | {"KLEASH_SOAK": "1"}, start_new_session=True
    )
    try:
        code: int | str = process.wait(seconds)
    except subprocess.TimeoutExpired:
        code = "no exit code in time"
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    say(
        f"=== {suite.name}: {'passed' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - began:.0f} s"
    )
    return code == 0


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--budget-min", type=float, default=30)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", help="suites whose name begins so, separated by commas")
    options = parser.parse_args()
    seed = seed_of_commit() if options.seed is None else options.seed
    budget_s = 60 * options.budget_min
    deadline = time.monotonic() + budget_s
    say(f"soak for {options.budget_min:g} minutes, seed {seed}")
    results: dict[str, bool] = {}
    for suite in suites():
        if options.only and not suite.name.startswith(tuple(options.only.split(","))):
            continue
        left_s = deadline - time.monotonic()
        seconds = min(left_s, max(suite.least_s, suite.share * budget_s))
        if left_s < suite.least_s:
            say(f"=== {suite.name}: left out, {left_s:.0f} s are too few")
            continue
        results[suite.name] = run(suite, seed, seconds)
    passed = sum(results.values())
    failed = [name for name, good in results.items() if not good]
    if failed:
        say(f"failed: {', '.join(failed)}; replay: python -m tests.faults.soak --seed {seed} --only …")
    say(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


def seed_of_commit() -> int:
    """The first digits of HEAD; any number outside a repository."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return secrets.randbelow(2**28) if head.returncode else int(head.stdout[:7], 16)


def say(line: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
