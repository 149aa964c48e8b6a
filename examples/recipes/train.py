"""Trains the runs of a recipe, in this process, by the trainer that a worker runs.

    python -m examples.recipes.train examples/recipes/beta_sweep.json [--runs too_low pi] [--folder FOLDER]

Each step becomes a row in FOLDER/<recipe>/<run>.jsonl; at the end their report is printed.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from examples.prepare_model import prepare
from examples.recipes.recipe import FOLDER, Recipe, load_recipe
from examples.recipes.report import report
from rlhf_core.diagnosis import diagnose
from rlhf_core.history import Row
from rlhf_core.policies import new_policy
from rlhf_core.ppo import StepResult, train
from rlhf_core.rewards import make_reward
from rlhf_core.update import fresh_state


def main() -> None:
    """Train, then report."""
    parser = argparse.ArgumentParser(description="Trains the runs of a recipe and reports what they reached.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--runs", nargs="+", help="only these; the others' rows stay as they are")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    for run in options.runs or recipe.runs:
        train_run(recipe, run, options.folder, str(prepare()))
    print(report(recipe, options.folder))


def train_run(recipe: Recipe, run: str, folder: Path, model: str) -> None:
    """One run of the model in a folder, from the first step; its rows replace those of an earlier time."""
    config = recipe.runs[run]
    policy = new_policy(model, config.model, seed=config.seed)
    gold = config.evaluation.gold_reward
    steps = train(
        policy,
        fresh_state(policy, config),
        config,
        prompts=config.data.prompts or (),
        eval_prompts=config.data.eval_prompts or (),
        reward=make_reward(config.reward),
        gold=None if gold is None else make_reward(gold),
    )
    target = recipe.rows_file(run, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    began, rows = time.monotonic(), list[Row]()
    unfinished = target.with_suffix(".unfinished")
    with unfinished.open("w") as file:
        for step in steps:
            if step.step:
                rows.append(Row(step.step, step.metrics))
            row = as_row(step, rows, time.monotonic() - began)
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(shown(run, row), flush=True)
    unfinished.replace(target)


def as_row(step: StepResult, rows: list[Row], seconds: float) -> dict[str, Any]:
    """What the report reads of a step, with the diagnosis that the job's document would show then."""
    return {
        "step": step.step,
        "seconds": round(seconds, 1),
        "metrics": step.metrics,
        "findings": {finding.rule: finding.message for finding in diagnose(rows)},
        "evaluation": step.evaluation._asdict() if step.evaluation else None,
        "samples": [sample.prompt + sample.completion for sample in step.samples],
    }


def shown(run: str, row: dict[str, Any]) -> str:
    """A line for whoever waits."""
    names = ("reward/mean", "reward/gold_mean", "kl/sequence", "kl/beta", "text/repeated_bigrams")
    numbers = "  ".join(f"{name} {row['metrics'][name]:.3f}" for name in names if name in row["metrics"])
    fired = ", ".join(row["findings"])
    return f"{run} {row['step']:>3} {row['seconds']:>6.1f} s  {numbers}" + (f"  [{fired}]" if fired else "")


if __name__ == "__main__":
    main()
