"""Every place where a run can be stopped, by SIGTERM and by kill -9: it goes on as if nothing had happened.

    python -m tests.faults.resume [--seed N] [--quick] [--only SUBSTRING] [--budget-s S] [--shards N]

One job per (training, controller, place, signal), in real processes on a real SQLite database. A run is stopped
at its place, goes on as the next attempt, and must end with the same weights, optimizer, controller, generators
(all in the final checkpoint's files), metric lines, samples and result as the run that nobody stopped. Places are
reached by wrapping functions in the child, never by a hook in the code. A later way of training joins TRAININGS.
"""

import argparse
import functools
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.bench import STEPS, Bench, spec
from tests.faults.forking import fork, warm

LONGEST_STOP_S = 60.0  # SIGTERM must have ended the process by then, beside whatever else runs here

LORA: dict[str, Any] = {"lora": {"rank": 2}}
TRAININGS: dict[str, dict[str, Any]] = {"lora": LORA, "full": {"lora": None}, "lora-exact": LORA}
PENALTIES = {"lora": "k1", "full": "k1", "lora-exact": "exact"}
POLICIES = {"lora": "LoraPolicy", "full": "FullPolicy"}
CONTROLLERS: dict[str, dict[str, Any]] = {
    "fixed": {"kind": "fixed"},
    "adaptive": {"kind": "adaptive", "target_nats_per_sequence": 0.5, "horizon": 40},
    "pi": {"kind": "pi", "target_nats_per_sequence": 0.5},
}
SIGNALS = {"term": signal.SIGTERM, "kill": signal.SIGKILL}


class Place(NamedTuple):
    """The `nth` call of `target`, and whether the signal comes before it or when it returns."""

    target: str  # module:name or module:Class.name
    nth: int
    before: bool

    def __str__(self) -> str:
        return f"{'before' if self.before else 'after'}:{self.target.split(':')[1]}:{self.nth}"


def places(training: str, every_steps: int) -> Iterator[Place]:
    """Boundaries of every step, and the inside of rollout, assessment, update, evaluation and save."""
    if training == "lora-exact":
        yield from places_of_kept_reference()
        return
    for nth in range(1, STEPS + 1):
        yield Place("jobs.sql_store:SqlStore.record_step", nth, True)
        yield Place("jobs.sql_store:SqlStore.record_step", nth, False)
    # 6 tokens a rollout; the audit's, then one evaluation before, one after step 2, one after the last.
    yield from (Place("rlhf_core.rollout:_sample", nth, True) for nth in (3, 9, 15, 21, 29))
    # The audit: four sequences together, then each alone. An evaluation is one call, a step two minibatches.
    yield from (Place("rlhf_core.experience:chunked_scores", nth, True) for nth in (3, 6, 8, 10, 11, 13))
    yield Place("worker.run:audit", 1, False)
    # Between the reference's pass and the policy's: the adapter is off. The audit's first seven.
    for nth in (5, 8, 11, 15) if training == "lora" else ():
        yield Place("peft.tuners.tuners_utils:BaseTuner.enable_adapter_layers", nth, True)
        yield Place("peft.tuners.tuners_utils:BaseTuner.enable_adapter_layers", nth, False)
    # Two epochs of two minibatches a step: after the first, in the middle, before the last.
    yield from (Place("rlhf_core.update:update_minibatch", nth, False) for nth in (1, 6, 11, 15))
    yield from (Place("rlhf_core.update:add_gradient", nth, False) for nth in (5,))
    # An evaluation: before it samples, when its completions have their rewards.
    yield from (Place("rlhf_core.held_out:answers", nth, True) for nth in (1, 2, 3))
    yield from (Place("rlhf_core.held_out:judge", nth, False) for nth in (1, 2, 3))
    saves = 1 + (STEPS - 1) // every_steps
    # A save: weights and tokenizer, trainer.safetensors, the JSON files, rename, row, retirement.
    for nth in {1, 2, saves}:
        yield Place(f"rlhf_core.policies:{POLICIES[training]}.save", nth, True)
        yield Place(f"rlhf_core.policies:{POLICIES[training]}.save", nth, False)
        yield Place("rlhf_core.checkpoint:save_file", nth, False)
    yield from (Place("rlhf_core.checkpoint:sha256", nth, True) for nth in (1, 12))
    for nth in {1, 2, saves}:
        yield Place("jobs.files:LocalFiles.publish_folder", nth, True)
        yield Place("jobs.files:LocalFiles.publish_folder", nth, False)
        yield Place("jobs.sql_store:SqlStore.record_checkpoint", nth, False)
    if saves > 3:  # the final and two
        yield Place("jobs.sql_store:SqlStore.drop_checkpoints", 1, False)
    yield Place("jobs.sql_store:SqlStore.finish", 1, True)


def places_of_kept_reference() -> Iterator[Place]:
    """Where the reference's hidden states are kept and used: the adapter goes off inside the update, too."""
    # The audit's seven and the first evaluation's; two a step to assess, four to update (11–14, 17–20, 24–27).
    for nth in (10, 12, 17, 26):
        yield Place("peft.tuners.tuners_utils:BaseTuner.enable_adapter_layers", nth, True)
    yield Place("rlhf_core.update:kept_reference", 6, False)
    yield from (Place("rlhf_core.update:update_minibatch", nth, False) for nth in (4, 11))


QUICK = {  # the steps before are unsaved: what SIGTERM does there differs most from what kill -9 does
    "lora": {"before:_sample:15", "before:BaseTuner.enable_adapter_layers:11", "after:save_file:1"},
    "full": {"after:update_minibatch:6"},
    "lora-exact": {"before:BaseTuner.enable_adapter_layers:17"},
}


class Case(NamedTuple):
    """One job that is stopped once."""

    training: str
    controller: str
    every_steps: int
    place: Place
    signal: str

    def __str__(self) -> str:
        return f"{self.training}/{self.controller}/every-{self.every_steps}/{self.signal}/{self.place}"


def cases(*, quick: bool, only: str, seed: int) -> list[Case]:
    """The matrix in a random order. Saves at each step, and (for `pi`) at every third: steps lie unsaved then."""
    matrix = [
        Case(training, controller, every, place, sign)
        for training in TRAININGS
        for controller in CONTROLLERS
        for every in ((1, 3) if controller == "pi" else (1,))
        for place in places(training, every)
        for sign in SIGNALS
    ]
    if quick:
        matrix = [c for c in matrix if c.every_steps == 3 and str(c.place) in QUICK[c.training]]
    chosen = [case for case in matrix if only in str(case)]
    random.Random(seed).shuffle(chosen)
    return chosen


def spec_of(case: Case) -> Any:
    return spec(
        TRAININGS[case.training],
        controller=CONTROLLERS[case.controller],
        penalty=PENALTIES[case.training],
        checkpoint={"every_steps": case.every_steps, "keep_last": 2},
    )


def stop_at(place: Place, number: signal.Signals) -> None:
    """In the child: send ourselves the signal at the place."""
    module_name, path = place.target.split(":")
    owner: Any = importlib.import_module(module_name)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), 0

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if place.before and calls == place.nth:
            os.write(1, f"REACHED {time.monotonic()}\n".encode())
            os.kill(os.getpid(), number)
        result = real(*args, **kwargs)
        if not place.before and calls == place.nth:
            os.write(1, f"REACHED {time.monotonic()}\n".encode())
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, wrapped)


def disturbed(bench: Bench, case: Case) -> tuple[str, bool, float]:
    """Run the case to its end: the job, whether its place was reached, the seconds from SIGTERM to the exit."""
    job_id = bench.create(spec_of(case))
    number = SIGNALS[case.signal]
    code, ended_at, log = bench.attempt(job_id, lambda: stop_at(case.place, number))
    reached = [float(line.split()[1]) for line in log.splitlines() if line.startswith("REACHED ")]
    # SIGTERM in the very last save or after it lets the run end.
    expected = {-signal.SIGKILL} if case.signal == "kill" else {0, 75}
    if reached and code not in expected:
        raise AssertionError(f"exit code {code}\n{log[-3000:]}")
    if code != 0:
        code, _, log = bench.attempt(job_id)
        if code != 0:
            raise AssertionError(f"the second attempt ended with {code}\n{log[-3000:]}")
    return job_id, bool(reached), max((ended_at - at for at in reached), default=0.0)


def difference(ours: dict[str, Any], undisturbed: dict[str, Any]) -> list[str]:
    return [name for name in undisturbed if json.dumps(ours[name]) != json.dumps(undisturbed[name])]


class Tally(NamedTuple):
    """What some cases came to."""

    done: int = 0
    failed: int = 0
    not_reached: int = 0
    slowest_stop_s: float = 0.0  # from the signal to the end of the process

    def plus(self, other: "Tally") -> "Tally":
        sums = (a + b for a, b in zip(self[:3], other[:3], strict=True))
        return Tally(*sums, slowest_stop_s=max(self.slowest_stop_s, other.slowest_stop_s))


def run_cases(chosen: list[Case], folder: Path, end: float) -> Tally:
    """Run them one after the other until `end`."""
    bench, tally = Bench(folder), Tally()
    expected: dict[tuple[str, str, int], dict[str, Any]] = {}
    for case in chosen:
        if time.monotonic() > end:
            break
        kind = (case.training, case.controller, case.every_steps)
        if kind not in expected:
            job_id = bench.create(spec_of(case))
            code, _, log = bench.attempt(job_id)
            assert code == 0, log
            expected[kind] = bench.outcome(job_id)
        try:
            job_id, reached, seconds = disturbed(bench, case)
            wrong = difference(bench.outcome(job_id), expected[kind])
            assert not wrong, f"{wrong} differ"
            tally = tally.plus(Tally(1, 0, not reached, seconds))
            if not reached:
                say(f"NOT REACHED {case}")
        except AssertionError as error:
            tally = tally.plus(Tally(1, 1))
            say(f"FAILED {case}: {error}\n  again: python -m tests.faults.resume --only '{case}'")
    return tally


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # whole lines from every shard


def run_shards(chosen: list[Case], folder: Path, shards: int, end: float) -> Tally:
    """Every shard is a process of its own with its own database."""
    pipes = []
    for index in range(shards):
        (folder / str(index)).mkdir()
        read, write = os.pipe()

        def body(index: int = index, write: int = write) -> int:
            tally = run_cases(chosen[index::shards], folder / str(index), end)
            os.write(write, json.dumps(tally).encode())
            return 0

        fork(body, sys.stdout.fileno())
        os.close(write)
        pipes.append(read)
    total = Tally()
    for pipe in pipes:
        with os.fdopen(pipe, "rb") as answer:
            total = total.plus(Tally(*json.loads(answer.read() or b"[0, 1]")))
        os.wait()
    return total


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--budget-s", type=float, default=float("inf"))
    parser.add_argument("--shards", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    warm()
    chosen = cases(quick=options.quick, only=options.only, seed=options.seed)
    with tempfile.TemporaryDirectory(prefix="kleash-resume-") as folder:
        tally = run_shards(chosen, Path(folder), min(options.shards, len(chosen)), started + options.budget_s)
    ok = (
        tally.done > 0
        and not tally.failed
        and not tally.not_reached
        and tally.slowest_stop_s < LONGEST_STOP_S
    )
    numbers = {
        "resume": "ok" if ok else "failed",
        "seed": options.seed,
        "cases": tally.done,
        "of": len(chosen),
        "identical": tally.done - tally.failed,
        "failed": tally.failed,
        "not_reached": tally.not_reached,
        "slowest_stop_s": round(tally.slowest_stop_s, 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    sys.stdout.write(json.dumps(numbers) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
