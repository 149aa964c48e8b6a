"""The classifiers of a job's rewards: found under the rule of all models, and asked for the label at once."""

import json
import os
from pathlib import Path

from api.errors import UnusableClassifier
from api.services.models import ModelResolver
from rlhf_core.classifier_labels import output_index
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.config.rewards import ClassifierReward, classifiers_of
from rlhf_core.errors import ModelLoadError

MAX_CONFIG_BYTES = 1_000_000


def classifier_paths(config: PPOConfig, models: ModelResolver, owner: str) -> dict[str, str]:
    """Where the weights of each classifier are, by its name.

    Raises:
        UnknownModel, PathNotAllowed: as any model's name.
        UnusableClassifier: it is no full classifier, or has no such label. Of a hub id the worker finds out.
    """
    gold = config.evaluation.gold_reward
    wanted = classifiers_of(config.reward) + (() if gold is None else classifiers_of(gold))
    return {reward.model: _path(reward, models, owner) for reward in wanted}


def _path(reward: ClassifierReward, models: ModelResolver, owner: str) -> str:
    source = models.resolve(reward.model, owner)
    if source.base is not None:
        raise UnusableClassifier("a reward's classifier must be a full model; this one is an adapter")
    if os.path.isabs(source.path):
        try:
            with Path(source.path, "config.json").open("rb") as file:
                output_index(dict(json.loads(file.read(MAX_CONFIG_BYTES))), reward.label)
        except (OSError, ValueError, TypeError, RecursionError):
            raise UnusableClassifier("the classifier's config.json cannot be read") from None
        except ModelLoadError as error:
            raise UnusableClassifier(str(error)) from None
    return source.path
