"""How fast, how small and how good PPO is: `make bench-ppo`, side by side with TRL 1.12.0, the last with PPO.

Both train the same model on the same prompts with the same reward, batch, response length, epochs, minibatches,
optimizer steps and learning rate of the policy (the value function's is the trainer's own; no grid is searched).
No completion ends early, nobody accumulates gradients. Each has a process of its own. They take turns, one
iteration each; a ratio is taken within a round, and its median and quartiles are over the rounds. Memory is the
largest resident set of the whole process.

tiny      GPT-2 with random weights, 32 × 24 tokens, 4 epochs × 4 minibatches, all weights
full      SmolLM2-135M, 8 × 16 tokens, 2 epochs × 2 minibatches, all weights
lora      the same with an adapter of rank 8
equal-kl  tiny: both runs' policies rescored by exact KL on fresh completions, their rewards compared at equal KL
variance  tiny: of a sequence's Σk1 over that of its ΣKL_t on the same completions, at sequence KL 0.1, 1 and 5
gradients tiny: noise of the policy gradient under `hybrid` and `exact` over that under `k1`, at fixed weights

The exit code is 1 unless all start from KL 0 and do the stated number of optimizer steps. The last line is one
JSON object; null: not measured.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from benchmarks.ppo.cases import CASES, OURS, TRL
from benchmarks.ppo.equal_kl import Point, paired
from benchmarks.ppo.processes import Contender, started, take_turns
from benchmarks.ppo.turn import Task
from benchmarks.ratios import Ratio, spread

NAMES = (
    *(f"{case}_{what}_over_trl" for case in CASES for what in ("time", "rss")),
    *("reward_at_equal_kl_minus_trl", "se", "penalty_var_ratio_at_kl", "gradient_variance"),
)
SEEDS, ITERATIONS, RESCORED = 5, 12, 16  # of equal-kl: pairs of runs, iterations of each, batches rescored
VARIANCE_BATCHES, GRADIENT_BATCHES = 128, 64
TRL_VERSION = "1.12.0"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path(".kleash/models.json"))
    parser.add_argument("--packages", type=Path, help="folder that TRL is installed in")
    parser.add_argument("--rounds", type=int, help="of every case, and seeds of equal-kl, instead of its own")
    everything = [*CASES, "equal-kl", "variance", "gradients"]
    parser.add_argument("--only", nargs="*", default=everything, choices=everything, help="parts")
    options = parser.parse_args()
    if reason := _no_trl(options.packages):
        print(reason, file=sys.stderr)
        return 2
    found, faults = dict[str, Any](dict.fromkeys(NAMES)), list[str]()
    with tempfile.TemporaryDirectory(prefix="bench-ppo-") as scratch:
        for name in everything:
            if name in options.only:
                try:
                    numbers, wrong = PARTS.get(name, _side_by_side)(name, options, Path(scratch))
                except ChildProcessError as death:
                    print(death, file=sys.stderr)
                    return 1
                found, faults = found | numbers, faults + wrong
    for fault in faults:
        print(f"NOT LIKE FOR LIKE: {fault}")
    print(json.dumps(_rounded(found)))
    return int(bool(faults))


def _side_by_side(name: str, options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """Time and memory of one case."""
    rounds = options.rounds or CASES[name].rounds
    tasks = [_task(who, name, options, scratch, rounds + 1) for who in CASES[name].contenders]
    contenders = {one.task.contender: one for one in take_turns(tasks, rounds)}
    ours = contenders[OURS]
    for who, one in contenders.items():
        # None where the system does not count it
        peak, imported = _mib(one.answers[-1]["peak_bytes"]), _mib(one.at_start["imported_bytes"])
        ratio = Ratio.of(_seconds(ours), _seconds(one))
        print(
            f"{name:9} {who:31} {Ratio.of(_seconds(one), [1.0] * rounds).median:8.3f} s an iteration"
            f"  peak {peak} MiB (imports {imported})  ours over it: {spread(ratio)}  n={rounds}"
        )
    theirs = contenders[TRL]
    peaks = [one.answers[-1]["peak_bytes"] for one in (ours, theirs)]
    found = {
        f"{name}_time_over_trl": Ratio.of(_seconds(ours), _seconds(theirs)).median,
        f"{name}_rss_over_trl": peaks[0] / peaks[1] if all(peaks) else None,
    }
    return found, [fault for one in contenders.values() for fault in one.faults()]


def _equal_kl(_: str, options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """Reward at equal KL, paired by seed."""
    pairs, faults = [], list[str]()
    for seed in range(options.rounds or SEEDS):
        curves = []
        for who in (OURS, TRL):
            task = _task(who, "tiny", options, scratch, ITERATIONS, seed=seed, rescored=RESCORED)
            with started(task) as one:
                rescored = [one.at_start, *(one.iterate() for _ in range(ITERATIONS))]
            curves.append(
                [Point(answer["rescored"]["kl"], answer["rescored"]["reward"]) for answer in rescored]
            )
            faults += one.faults()
            last = curves[-1][-1]
            print(f"equal-kl  {who:31} seed {seed}: KL {last.kl:.2f}, reward {last.reward:.3f} at the end")
        pairs.append((curves[0], curves[1]))
    found = paired(pairs)
    sd = one.at_start["rescored"]["reward_sd"]
    print(
        f"equal-kl  reward at equal KL, ours minus TRL's: {found.mean:+.4f} ± {found.se} (standard error), "
        f"{found.pairs} seeds; the reward's SD at the start is {sd:.4f}"
    )
    return {"reward_at_equal_kl_minus_trl": found.mean, "se": found.se}, faults


def _variance(_: str, options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """How much less exact KL varies than k1."""
    from benchmarks.ppo import variance

    case, folder = CASES["tiny"], _task(OURS, "tiny", options, scratch, 0).folder
    found = variance.at_targets(case, folder, seed=0, iterations=ITERATIONS, batches=VARIANCE_BATCHES)
    for target in variance.TARGETS:
        if target not in found:
            print(f"variance  KL {target}: not reached in {ITERATIONS} iterations")
            continue
        at = found[target]
        print(
            f"variance  KL {at.kl:.3f}: Var Σk1 / Var ΣKL = {at.ratio:.2f} [{at.low:.2f} … {at.high:.2f}], "
            f"{at.sequences} completions"
        )
    ratios = {f"{target:g}": found[target].ratio if target in found else None for target in variance.TARGETS}
    return {"penalty_var_ratio_at_kl": ratios}, []


def _gradients(_: str, options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    """Which penalty's gradient is the quietest, and where."""
    from benchmarks.ppo import gradients

    case, folder = CASES["tiny"], _task(OURS, "tiny", options, scratch, 0).folder
    found = gradients.at_policies(case, folder, seed=0, batches=GRADIENT_BATCHES)
    for name, at in found.items():
        for what, row in (("policy gradient", at.whole), ("KL term alone", at.kl_term)):
            figures = ", ".join(
                f"{penalty} {one.over_k1:.2f} [{one.low:.2f} … {one.high:.2f}]"
                for penalty, one in row.items()
                if penalty != "k1"
            )
            print(f"gradients {name:9} KL {at.kl:.2f}  {what:15} variance over k1's: {figures}")
    return {"gradient_variance": {name: _over_k1(at) for name, at in found.items()}}, []


def _over_k1(at: Any) -> dict[str, Any]:
    """The ratios without their intervals."""
    rows = {"policy_gradient": at.whole, "kl_term": at.kl_term}
    return {what: {penalty: one.over_k1 for penalty, one in row.items()} for what, row in rows.items()}


PARTS = {"equal-kl": _equal_kl, "variance": _variance, "gradients": _gradients}


def _task(
    contender: str,
    case: str,
    options: argparse.Namespace,
    scratch: Path,
    iterations: int,
    *,
    seed: int = 0,
    rescored: int = 0,
) -> Task:
    from benchmarks.ppo.models import folder_of

    folder = folder_of(CASES[case], options.registry, scratch)
    packages = options.packages and str(options.packages.resolve())
    return Task(contender, case, str(folder), packages, seed, iterations, rescored)


def _seconds(contender: Contender) -> list[float]:
    return [answer["seconds"] for answer in contender.answers[1:]]  # the first one warms up


def _mib(size: int | None) -> int | None:
    return size and round(size / 2**20)


def _no_trl(packages: Path | None) -> str | None:
    """How to get TRL, if it is not there."""
    path = sys.path if packages is None else [*sys.path, str(packages.resolve())]
    versions = [found.version for found in distributions(name="trl", path=path)]
    if TRL_VERSION in versions[:1]:
        return None
    there = f"trl {versions[0]} is there" if versions else "trl is missing"
    return (
        f"{there}, and this compares with TRL {TRL_VERSION}, the last with PPO. `make bench-ppo` installs it, or\n"
        "  pip install --no-deps --require-hashes --target FOLDER -r locks/bench.lock\n"
        "  python -m benchmarks.ppo --packages FOLDER"
    )


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _rounded(value) for name, value in found.items()}
    return found if found is None else round(found, 4)


if __name__ == "__main__":
    sys.exit(main())
