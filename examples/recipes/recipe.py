"""A recipe is a file of runs: a job to start from, what all runs change in it, and what each one changes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_core.config.ppo import PPOConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".kleash" / "recipes"


class Recipe(NamedTuple):
    """The runs of a file, by name, in its order."""

    name: str
    about: str
    runs: dict[str, PPOConfig]

    def rows_file(self, run: str, folder: Path) -> Path:
        """Where a run's rows are kept, one JSON object a line."""
        return folder / self.name / f"{run}.jsonl"


def load_recipe(path: Path) -> Recipe:
    """Raises pydantic.ValidationError where a run is no valid PPOConfig."""
    recipe = json.loads(path.read_text())
    base = json.loads((ROOT / recipe["base"]).read_text())["config"]
    common = changed(base, recipe["changes"])
    runs = {name: PPOConfig.model_validate(changed(common, own)) for name, own in recipe["runs"].items()}
    return Recipe(path.stem, recipe["about"], runs)


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config with fields of its sections replaced; a field that is itself an object is replaced whole."""
    sections = {
        name: {**config.get(name, {}), **fields} if isinstance(fields, Mapping) else fields
        for name, fields in changes.items()
    }
    return {**config, **sections}
