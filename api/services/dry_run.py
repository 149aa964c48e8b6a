"""What a job would be, without making it: its config with every default, and what it would take."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from api.services.estimate import UNKNOWN_PROMPT_TOKENS, Estimate, of_scoring, of_training, shape_of
from jobs.bulk import ScoreConfig
from jobs.scoring_wire import ModelSource
from jobs.spec import JobSpec, PPOSpec, ScoreSpec, first_step
from rlhf_core.config.ppo import PPOConfig

NOT_MEASURED = "memory_bytes is null: the model's safetensors are not in a folder that the API can read"
CLASSIFIER = "memory_bytes leaves out the models that judge the completions"
PROMPTS_NOT_READ = (
    f"memory_bytes takes prompts of {UNKNOWN_PROMPT_TOKENS} tokens: the file is not read for it"
)


class DryRun(NamedTuple):
    """`warnings` say what the estimate leaves open."""

    config: PPOConfig | ScoreConfig
    estimate: Estimate
    warnings: list[str]


def dry_run(spec: JobSpec, resolved: dict[str, Any]) -> DryRun:
    """Of a request that has been resolved."""
    return _score(spec, resolved) if isinstance(spec, ScoreSpec) else _ppo(spec, resolved)


def resolved_config(spec: JobSpec, resolved: Mapping[str, Any]) -> PPOConfig | ScoreConfig:
    """With every default, and the names of the default pair where the request had none (nor its row has any)."""
    if isinstance(spec, ScoreSpec):
        return spec.config.model_copy(update=resolved.get("names", {}))
    return spec.config


def _ppo(spec: PPOSpec, resolved: dict[str, Any]) -> DryRun:
    config = spec.config
    found = of_training(config, first_step(resolved), shape_of(resolved["model"]["path"]))
    if found.memory_bytes is None:
        return DryRun(config, found, [NOT_MEASURED])
    warnings = [PROMPTS_NOT_READ] * (config.data.prompts is None)
    warnings += [CLASSIFIER] * bool(resolved["classifiers"])
    return DryRun(config, found, warnings)


def _score(spec: ScoreSpec, resolved: dict[str, Any]) -> DryRun:
    found = of_scoring(spec.config, [ModelSource(**resolved[role]) for role in ("policy", "reference")])
    return DryRun(resolved_config(spec, resolved), found, [NOT_MEASURED] * (found.memory_bytes is None))
