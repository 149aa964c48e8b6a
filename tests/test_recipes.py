"""What docs/recipes.md shows runs: the files are valid, the tables land, the report says what the rows hold."""

import copy
import json
from pathlib import Path

import pytest
import torch

from examples.recipes import bandit
from examples.recipes.recipe import ROOT, Recipe, changed, load_recipe
from examples.recipes.rejudge import rejudged
from examples.recipes.report import read_rows, report, verdict
from examples.recipes.tabular import total_variation
from examples.recipes.train import train_run
from tests.rlhf_core import tiny_policies

FILES = sorted((ROOT / "examples" / "recipes").glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_run_of_a_recipe_is_a_valid_config_with_held_out_prompts(file: Path) -> None:
    for config in load_recipe(file).runs.values():
        assert config.data.eval_prompts
        assert not set(config.data.eval_prompts) & set(config.data.prompts or ())


def test_a_field_that_is_an_object_is_replaced_whole() -> None:
    """A controller's target must not stay behind with another kind of controller."""
    base = {"seed": 0, "kl": {"beta": 0.1, "controller": {"kind": "pi", "target": 6}}}
    merged = changed(base, {"seed": 1, "kl": {"controller": {"kind": "fixed"}}})
    assert merged == {"seed": 1, "kl": {"beta": 0.1, "controller": {"kind": "fixed"}}}


def test_the_optima_that_the_bandit_prints() -> None:
    """numerics.md T13b, beside test_fixed_points."""
    sequence = torch.tensor([0.66041440, 0.00806394, 0.16576083, 0.16576083], dtype=torch.float64)
    per_token = torch.tensor([0.75066403, 0.00916593, 0.12008502, 0.12008502], dtype=torch.float64)
    torch.testing.assert_close(bandit.sequence_optimum(), sequence, atol=1e-8, rtol=0)
    torch.testing.assert_close(bandit.per_token_optimum(), per_token, atol=1e-8, rtol=0)


def test_the_bandit_lands_on_its_optimum() -> None:
    optimum = torch.tensor([0.75799208, 0.10258307, 0.13942485], dtype=torch.float64)  # numerics.md T13
    assert total_variation(bandit.bandit("penalty k1"), optimum) < 0.02


def test_rows_of_a_run_become_a_report(tmp_path: Path) -> None:
    model = str(tiny_policies.build(tmp_path)["gpt2"])
    plain = tiny_policies.config(Path(model), steps=6).model_dump()
    gold = {"evaluation": {"gold_reward": {"kind": "sentiment"}, "every_steps": 3}}
    runs = changed(plain, gold | {"data": {"eval_prompts": ["the cow", "a bird"]}})
    recipe = Recipe("tiny", "About.", {"only": type(tiny_policies.config(Path(model))).model_validate(runs)})
    train_run(recipe, "only", tmp_path / "rows", model)
    rows = read_rows(recipe.rows_file("only", tmp_path / "rows"))
    again = json.loads(json.dumps(rejudged(copy.deepcopy(rows), recipe.runs["only"])))
    for before, after in zip(rows, again, strict=True):  # the same judge says the same afterwards
        assert after["evaluation"] == before["evaluation"]
        assert after["metrics"] == pytest.approx(before["metrics"])
    lines = report(recipe, tmp_path / "rows").splitlines()
    assert [line for line in lines if line.startswith("| only | 6 | 0.100 |")]
    assert [line.split(" | ")[0] for line in lines if line.startswith(("| 0 ", "| 3 ", "| 6 "))] == [
        "| 0",
        "| 3",
        "| 6",
    ]


def test_the_verdict_counts_from_the_peak_of_the_gold_reward() -> None:
    """Gold 1 … 6 and down again: the mean of five is highest around 6, (4 + 5 + 6 + 5 + 4) / 5 = 4.8.

    Around the last but one, and the last, there are four and three: (5 + 4 + 3 + 2) / 4, (4 + 3 + 2) / 3.
    """
    gold = [1, 2, 3, 4, 5, 6, 5, 4, 3, 2]
    rows = [
        {"step": step, "metrics": {"reward/gold_mean": value}, "findings": {"rule": ""} if step > 8 else {}}
        for step, value in enumerate(gold, 1)
    ]
    assert verdict([{"step": 0}, *rows]).splitlines() == [
        "- Gold reward of the rollouts, mean of 5 steps: highest around step 6 (+4.800), at the end +3.000.",
        "- `rule` fired first at step 9, +3 from the peak; gold reward there +3.500.",
    ]
