"""What a recipe's runs reached, in Markdown, from the rows that they left.

python -m examples.recipes.report examples/recipes/beta_sweep.json
"""

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

from examples.recipes.recipe import FOLDER, Recipe, load_recipe
from rlhf_core.evaluation import Evaluation, mean_and_se, paired_difference, repeated_bigrams

BESIDE = 2  # steps on both sides, in the mean that is the gold reward around a step
SHOWN = 2  # which held-out prompt's completion stands for a run

Rows = list[dict[str, Any]]


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description="What a recipe's runs reached, in Markdown.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    print(report(load_recipe(options.recipe), options.folder))


def report(recipe: Recipe, folder: Path) -> str:
    """A table of the runs that have rows; for one with a gold reward, its way and when the diagnosis spoke."""
    files = {run: recipe.rows_file(run, folder) for run in recipe.runs}
    found = {run: read_rows(file) for run, file in files.items() if file.exists()}
    parts = [recipe.about, runs_table(found)]
    parts += [f"**{run}**\n\n{way(rows)}\n\n{verdict(rows)}" for run, rows in found.items() if has_gold(rows)]
    return "\n\n".join(parts)


def read_rows(file: Path) -> Rows:
    """One row a step, from step 0."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def evaluations(rows: Rows) -> dict[int, Evaluation]:
    """Those on the held-out prompts, by step."""
    return {row["step"]: Evaluation(**row["evaluation"]) for row in rows if row["evaluation"]}


def has_gold(rows: Rows) -> bool:
    """True if a second judge was asked."""
    return bool(Evaluation(**rows[0]["evaluation"]).gold)


def runs_table(found: dict[str, Rows]) -> str:
    """A row per run: what the last evaluation says beside the one before training, prompt by prompt."""
    lines = [
        "| run | steps | β at the end | held-out reward, paired change | exact KL/sequence | repeated bigrams: in "
        "a text, over all | a completion | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if found:  # all begin with the same evaluation
        before = evaluations(next(iter(found.values())))[0]
        numbers = f"{fmean(before.scores):+.3f} | 0 | {repetition(before)}"
        lines.append(f"| before | 0 | | {numbers} | {text(before)} | |")
    for run, rows in found.items():
        seen = list(evaluations(rows).values())
        gain, kl = paired_difference(seen[0], seen[-1]), mean_and_se(seen[-1].kl)
        lines.append(
            f"| {run} | {rows[-1]['step']} | {rows[-1]['metrics']['kl/beta']:.3f} | {gain['mean']:+.3f} ± "
            f"{gain['se']:.3f} | {kl[0]:.2f} ± {kl[1]:.2f} | {repetition(seen[-1])} | {text(seen[-1])} | "
            f"{rows[-1]['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def repetition(evaluation: Evaluation) -> str:
    """Inside a completion on average, and over all of them one after the other: there other texts count too."""
    inside = fmean(repeated_bigrams(completion) for completion in evaluation.completions)
    return f"{inside:.3f}, {repeated_bigrams(' '.join(evaluation.completions)):.3f}"


def text(evaluation: Evaluation) -> str:
    """A prompt and what the policy made of it."""
    at = min(SHOWN, len(evaluation.prompts) - 1)
    shown = f"{evaluation.prompts[at]}**{evaluation.completions[at]}**"
    return shown.replace("\n", " ⏎ ").replace("|", "¦")


def way(rows: Rows) -> str:
    """Both rewards and the KL at each evaluation."""
    lines = [
        "| step | proxy, held out | gold, held out | exact KL/sequence | findings | a completion |",
        "|---|---|---|---|---|---|",
    ]
    findings = {row["step"]: ", ".join(f"`{rule}`" for rule in row["findings"]) for row in rows}
    for step, seen in evaluations(rows).items():
        numbers = [f"{mean:+.3f} ± {se:.3f}" for mean, se in map(mean_and_se, (seen.scores, seen.gold))]
        lines.append(
            f"| {step} | {' | '.join(numbers)} | {fmean(seen.kl):.2f} | {findings[step]} | {text(seen)} |"
        )
    return "\n".join(lines)


def verdict(rows: Rows) -> str:
    """Where the gold reward of the rollouts was highest, and when each rule fired first."""
    steps = [row for row in rows if row["step"]]
    gold = around([row["metrics"]["reward/gold_mean"] for row in steps])
    peak = max(range(len(gold)), key=gold.__getitem__)
    lines = [
        f"Gold reward of the rollouts, mean of {2 * BESIDE + 1} steps: highest around step {steps[peak]['step']} "
        f"({gold[peak]:+.3f}), at the end {gold[-1]:+.3f}."
    ]
    first: dict[str, int] = {}
    for at, row in enumerate(steps):
        for rule in row["findings"]:
            first.setdefault(rule, at)
    lines += [
        f"`{rule}` fired first at step {steps[at]['step']}, {at - peak:+d} from the peak; gold reward there "
        f"{gold[at]:+.3f}."
        for rule, at in first.items()
    ]
    return "\n".join(f"- {line}" for line in lines)


def around(values: list[float]) -> list[float]:
    """Means of each value with BESIDE on both sides; at the ends, of those that there are."""
    return [fmean(values[max(0, at - BESIDE) : at + BESIDE + 1]) for at in range(len(values))]


if __name__ == "__main__":
    main()
