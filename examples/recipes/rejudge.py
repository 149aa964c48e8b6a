"""Asks a recipe's gold reward about runs that are over, and writes their rows again with what it says.

    python -m examples.recipes.rejudge examples/recipes/proxy_gold.json

A gold reward reaches no update, so another one, thought of later, gives the rows that training with it would have.
Rows hold texts and no token counts: a gold reward that judges the length cannot be asked.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.recipes.recipe import FOLDER, load_recipe
from examples.recipes.report import Rows, read_rows, report
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.diagnosis import diagnose
from rlhf_core.evaluation import Evaluation, mean_and_se, summarise
from rlhf_core.history import Row
from rlhf_core.rewards import RewardFunction, make_reward


def main() -> None:
    """Judge, then report."""
    parser = argparse.ArgumentParser(description="Asks the gold reward of a recipe about runs that are over.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    for run, config in recipe.runs.items():
        file = recipe.rows_file(run, options.folder)
        file.write_text("".join(json.dumps(row) + "\n" for row in rejudged(read_rows(file), config)))
    print(report(recipe, options.folder))


def rejudged(rows: Rows, config: PPOConfig) -> Rows:
    """The rows with the gold reward of `config`, and the diagnosis that follows from it."""
    if config.evaluation.gold_reward is None:
        raise ValueError("the run's config has no evaluation.gold_reward")
    gold = make_reward(config.evaluation.gold_reward)
    history: list[Row] = []
    for row in rows:
        metrics = row["metrics"]
        if row["samples"]:
            scores = gold(*parts(row["samples"], config.data.prompts or ()), [])
            metrics["reward/gold_mean"] = mean_and_se(scores)[0]
            history.append(Row(row["step"], metrics))
        if row["evaluation"]:
            judge_evaluation(row, gold)
        row["findings"] = {finding.rule: finding.message for finding in diagnose(history)}
    return rows


def judge_evaluation(row: dict[str, Any], gold: RewardFunction) -> None:
    """Held-out completions: their gold scores, and the metrics of a step that was evaluated."""
    seen = Evaluation(**row["evaluation"])
    seen = seen._replace(gold=tuple(gold(seen.prompts, seen.completions, seen.lengths)))
    row["evaluation"] = seen._asdict()
    if row["step"]:
        row["metrics"] |= {f"eval/{name}": summarise(seen)[name] for name in ("gold_mean", "gold_se")}


def parts(texts: Sequence[str], prompts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts and completions of texts that begin with a prompt: the longest that fits."""
    begun = [max((prompt for prompt in prompts if text.startswith(prompt)), key=len) for text in texts]
    return begun, [text.removeprefix(prompt) for text, prompt in zip(texts, begun, strict=True)]


if __name__ == "__main__":
    main()
