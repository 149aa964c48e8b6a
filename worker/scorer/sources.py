"""Which weights a scorer or the child of a job may open: registered ones, folders below the model roots or the
artifacts, and hub ids where the deployment allows them.

The API resolves names to folders under the same rule; it is checked again here, where the files are opened: since
then a folder may have become a link, or the registry another.
"""

import os
from pathlib import Path

from jobs.errors import ScoringRefused
from jobs.real_paths import has_way_out, is_below, real_path
from jobs.scoring_wire import HUB_ID, ModelSource
from jobs.settings import Registry, Settings
from rlhf_core.models import WeightSource


class AllowedSources:
    """The rule, with its roots resolved once."""

    def __init__(self, settings: Settings) -> None:
        self._registered = {model.source for model in settings.registry.models.values()}
        self._allow_hub_models = settings.allow_hub_models
        self._roots = [root.resolve() for root in [*settings.model_roots, settings.artifacts]]

    def weights(self, source: ModelSource) -> WeightSource:
        """The source as the loader takes it. Raises ScoringRefused (`path_not_allowed`)."""
        for path in (source.path, source.base):
            if path is not None and not self._allows(path):
                raise ScoringRefused("path_not_allowed", "a model's path is outside the configured roots")
        full_model = source.base or source.path
        if (Path(full_model) / "adapter_config.json").is_file():  # its own config would name the base to open
            raise ScoringRefused("model_load_failed", "an adapter cannot be loaded without its base")
        return WeightSource(source.path, source.base)

    def whole_model(self, path: str) -> str:
        """The path of a model that needs no base. Raises ScoringRefused."""
        return self.weights(ModelSource(path=path)).path

    def _allows(self, path: str) -> bool:
        if path in self._registered:
            return True
        if "\0" in path:
            return False
        if self._allow_hub_models and HUB_ID.fullmatch(path) and not os.path.lexists(path):
            return True  # a folder of this name beside us would be loaded in its place
        resolved = real_path(path)
        if resolved is None or not is_below(resolved, self._roots):
            return False
        return not (resolved.is_dir() and has_way_out(resolved, self._roots))


def default_pair(registry: Registry) -> tuple[ModelSource, ModelSource] | None:
    """Policy and reference of requests that name none, or None where the registry has no such pair."""
    if registry.default_policy is None or registry.default_reference is None:
        return None
    return registry.source(registry.default_policy), registry.source(registry.default_reference)
