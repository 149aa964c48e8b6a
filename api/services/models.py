"""From a model's name in a request to the folder that holds its weights, and nowhere else.

A name is one of: a registered name; a checkpoint `job_<id>@<name>`; a path below one of the configured roots;
where the deployment allows it, a hub id `org/name`. What looks like both is a path if anything is there.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from api.errors import FileNotFound, ModelNotFound, PathNotAllowed, UnknownModel
from jobs.errors import JobNotFound
from jobs.real_paths import has_way_out, is_below, real_path
from jobs.scoring_wire import HUB_ID, ModelSource
from jobs.settings import Settings
from jobs.spec import CHECKPOINT_NAME, Checkpoint, Job
from jobs.store import Store
from rlhf_core.errors import ModelLoadError, UnsafeModel
from rlhf_core.model_folder import refuse_unsafe_configs

CHECKPOINT = re.compile(CHECKPOINT_NAME)
ADAPTER_CONFIG = "adapter_config.json"
MAX_ADAPTER_CONFIG_BYTES = 1_000_000
MAX_PATH_CHARS = 4096


class ListedModel(NamedTuple):
    """A model with a name: `base` is the name an adapter stands on; `default_for` the roles it fills."""

    id: str
    base: str | None
    default_for: tuple[str, ...]
    source: ModelSource


class Saved(NamedTuple):
    """A checkpoint and the job that made it."""

    job: Job
    checkpoint: Checkpoint


class ModelResolver:
    """Finds models and prompt files by what requests call them."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._registry = settings.registry
        self._store = store
        self._artifacts = settings.artifacts.resolve()
        self._roots = [Path(os.path.realpath(root)) for root in settings.model_roots]
        self._allow_hub_models = settings.allow_hub_models

    def resolve(self, name: str, owner: str) -> ModelSource:
        """Where the weights of `name` are.

        Raises:
            UnknownModel: nothing is called so (or the checkpoint is another owner's, or it is a hub id and those
                are not allowed).
            PathNotAllowed: a path that leads outside the roots.
            UnsafeModel: a folder that holds code, or asks for some.
        """
        if name in self._registry.models:
            return self._registry.source(name)
        if CHECKPOINT.fullmatch(name):
            return self._saved_model(name, owner)
        if self._is_hub_id(name):
            return self._from_hub(name)
        if "/" in name or name.startswith("."):
            return self._folder(name)
        raise UnknownModel("no registered model, job checkpoint or folder has this name; see GET /v1/models")

    def default_pair(self) -> tuple[str, str]:
        """The names (policy, reference) of requests that give none. Raises UnknownModel if none are set."""
        policy, reference = self._registry.default_policy, self._registry.default_reference
        if policy is None or reference is None:
            raise UnknownModel("this deployment has no default pair: name policy and reference")
        return policy, reference

    def pair(self, policy: str | None, reference: str | None) -> dict[str, str]:
        """The names by role: those given, the default pair's for those that are not. Raises UnknownModel."""
        if policy is None or reference is None:
            ours, theirs = self.default_pair()
            policy, reference = policy or ours, reference or theirs
        return {"policy": policy, "reference": reference}

    def resolve_file(self, name: str) -> str:
        """The real path of a file below the roots (relative names are looked up in each root).

        Raises:
            PathNotAllowed: it leads outside the roots.
            FileNotFound: there is no such file.
        """
        path = self._below_roots(name)
        if not os.path.isfile(path):
            raise FileNotFound("there is no such file below the configured roots")
        return str(path)

    def listed(self) -> list[ListedModel]:
        """The registered models by name."""
        registry = self._registry
        roles = {"policy": registry.default_policy, "reference": registry.default_reference}
        return [
            ListedModel(
                *(name, model.base, tuple(role for role, default in roles.items() if default == name)),
                registry.source(name),
            )
            for name, model in sorted(registry.models.items())
        ]

    def named(self, name: str, owner: str) -> ListedModel:
        """A registered model, or a checkpoint of the owner's. Raises ModelNotFound."""
        for model in self.listed():
            if model.id == name:
                return model
        try:
            job = self.checkpoint(name, owner).job
            lora = job.spec.type == "ppo" and job.ppo.model.lora is not None
            return ListedModel(name, job.ppo.model.name if lora else None, (), self._saved_model(name, owner))
        except UnknownModel:
            raise ModelNotFound("no registered model or job checkpoint has this name") from None

    def checkpoint(self, name: str, owner: str) -> Saved:
        """The checkpoint called `job_…@step-40`. Raises UnknownModel, also when it is another owner's."""
        match = CHECKPOINT.fullmatch(name)
        if match is None:
            raise UnknownModel("a checkpoint is called job_<id>@<name>")
        try:
            job = self._store.get_job(match[1], owner)
        except JobNotFound:
            raise UnknownModel("no such job") from None
        checkpoint = self._store.get_checkpoint(match[1], match[2])
        if checkpoint is None:
            raise UnknownModel("the job has no such checkpoint (any more); see its /checkpoints")
        return Saved(job, checkpoint)

    def _saved_model(self, name: str, owner: str) -> ModelSource:
        job, checkpoint = self.checkpoint(name, owner)
        path = str(self._artifacts / checkpoint.path)
        whole = job.ppo.model.lora is None
        return ModelSource(path=path, base=None if whole else job.resolved["model"]["path"])

    def _is_hub_id(self, name: str) -> bool:
        return HUB_ID.fullmatch(name) is not None and not any(
            os.path.lexists(root / name) for root in self._roots
        )

    def _from_hub(self, name: str) -> ModelSource:
        if not self._allow_hub_models:
            raise UnknownModel(
                "there is no such folder below the configured roots, and this deployment takes no hub ids "
                "(KLEASH_ALLOW_HUB_MODELS)"
            )
        return ModelSource(path=name)

    def _folder(self, name: str) -> ModelSource:
        path = self._model_folder(name)
        if os.path.isfile(path / ADAPTER_CONFIG):
            _require_safe(path)
            return ModelSource(path=str(path), base=self._adapter_base(path / ADAPTER_CONFIG))
        if not os.path.isfile(path / "config.json"):
            raise UnknownModel("there is no model folder at this path below the configured roots")
        _require_safe(path)
        return ModelSource(path=str(path))

    def _adapter_base(self, config: Path) -> str:
        """The base that an adapter's own config names, if a request could name it too."""
        try:
            with config.open("rb") as file:
                named = json.loads(file.read(MAX_ADAPTER_CONFIG_BYTES))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise UnknownModel(f"the adapter's {ADAPTER_CONFIG} cannot be read") from None
        if not isinstance(named, str):
            raise UnknownModel(f"the adapter's {ADAPTER_CONFIG} names no base")
        bases = {key: model.source for key, model in self._registry.models.items() if model.base is None}
        if named in bases:
            return bases[named]
        if named in bases.values():
            return named
        if self._is_hub_id(named):
            return self._from_hub(named).path
        base = self._model_folder(named)
        if not os.path.isfile(base / "config.json"):
            raise UnknownModel("the adapter's base is neither registered nor a folder below the roots")
        _require_safe(base)
        return str(base)

    def _model_folder(self, name: str) -> Path:
        """As `_below_roots`; a link in the folder may lead no further than the folder itself."""
        path = self._below_roots(name)
        if os.path.isdir(path) and has_way_out(path, self._roots):
            raise PathNotAllowed("a link in the model's folder leads outside the configured roots")
        return path

    def _below_roots(self, name: str) -> Path:
        """The real path, symbolic links followed, which must lie below a root. Looks at nothing else."""
        if "\0" in name or len(name) > MAX_PATH_CHARS:  # following links is quadratic in the length
            raise PathNotAllowed(f"a path has at most {MAX_PATH_CHARS} characters, none of them NUL")
        candidates = [real_path(root / name) for root in self._roots]
        allowed = [path for path in candidates if path is not None and is_below(path, self._roots)]
        if not allowed:
            raise PathNotAllowed("paths must lie below one of the configured roots")
        return next((path for path in allowed if os.path.exists(path)), allowed[0])


def _require_safe(folder: Path) -> None:
    """What can be seen without opening weights; whoever opens them looks again."""
    try:
        refuse_unsafe_configs(folder)
    except UnsafeModel:
        raise
    except (ModelLoadError, OSError):
        return  # damaged: whoever loads it says so


def is_checkpoint(name: str) -> bool:
    """True for the name of a job's checkpoint."""
    return CHECKPOINT.fullmatch(name) is not None
