"""What the API found below the roots is looked at again where it is opened: it may have changed since."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from api.services.models import ModelResolver
from jobs.errors import ScoringRefused
from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from rlhf_core.errors import RLHFError
from tests.tiny_classifiers import save_encoder
from worker.failures import failure_of
from worker.run import Stop, TrainingRun
from worker.scorer.sources import AllowedSources

CONFIG = {
    "model": {"name": "tiny", "lora": {"rank": 2}},
    "data": {"prompts": ["The cat", "A lovely"]},
    "reward": {"kind": "classifier", "model": "judge", "label": "good"},
    "rollout": {"batch_size": 2, "max_new_tokens": 4},
    "optimization": {"steps": 1, "minibatches": 1},
}


class Deployment:
    """A model and a classifier, each below the root or registered from elsewhere, and copies of them outside."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self.root, self.outside, self.registry = folder / "root", folder / "outside", folder / "models.json"
        for place in (self.root, self.outside):
            shutil.copytree(tiny, place / "tiny")
            save_encoder(place / "judge")
        self.register({})
        self.data = folder
        upgrade(url := f"sqlite:///{folder}/kleash.db")
        self.store = SqlStore(url)

    @property
    def settings(self) -> Settings:
        """Of a process that starts now."""
        return Settings(data=self.data, model_roots=[self.root], models_file=self.registry)

    def register(self, models: dict[str, Path]) -> None:
        named = {name: {"source": str(path)} for name, path in models.items()}
        self.registry.write_text(json.dumps({"models": named}))

    def create(self, names: dict[str, str]) -> None:
        """A job, its names made paths as the API does."""
        resolver = ModelResolver(self.settings, self.store)
        model, judge = (resolver.resolve(names.get(name, f"./{name}"), "me") for name in ("tiny", "judge"))
        resolved = {"model": {"path": model.path}, "classifiers": {"judge": judge.path}}
        self.store.create_job("job_1", "me", PPOSpec.model_validate({"config": CONFIG}), resolved)

    def run(self) -> int:
        settings = self.settings
        job = self.store.claim("job_1", 1, worker="w", lease_s=600)
        assert job is not None
        place = settings.artifacts / job.id / str(job.attempt)
        place.mkdir(parents=True)
        return TrainingRun(self.store, job, place, "cpu", sources=AllowedSources(settings)).run(Stop())


@pytest.fixture
def deployment(tmp_path: Path, tiny_model: Path) -> Deployment:
    return Deployment(tmp_path, tiny_model)


def swapped_for_a_link(name: str) -> Callable[[Deployment], None]:
    def change(here: Deployment) -> None:
        shutil.rmtree(here.root / name)
        (here.root / name).symlink_to(here.outside / name)

    return change


def file_swapped_for_a_link(name: str) -> Callable[[Deployment], None]:
    def change(here: Deployment) -> None:
        (here.root / name / "model.safetensors").unlink()
        (here.root / name / "model.safetensors").symlink_to(here.outside / name / "model.safetensors")

    return change


def asking_for_code(name: str) -> Callable[[Deployment], None]:
    def change(here: Deployment) -> None:
        config = here.root / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "x.Y"}}))

    return change


def overlapping(name: str) -> Callable[[Deployment], None]:
    def change(here: Deployment) -> None:
        with (here.root / name / "model.safetensors").open("ab") as file:
            file.write(b"\0")

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        *((make(name), "path_not_allowed") for make in (swapped_for_a_link, file_swapped_for_a_link)
          for name in ("tiny", "judge")),
        *((asking_for_code(name), "unsafe_model") for name in ("tiny", "judge")),
        *((overlapping(name), "model_load_failed") for name in ("tiny", "judge")),
    ],
)  # fmt: skip
def test_what_has_changed_since_the_api_looked_is_not_loaded(
    deployment: Deployment, change: Callable[[Deployment], None], code: str
) -> None:
    deployment.create({})
    change(deployment)
    with pytest.raises((ScoringRefused, RLHFError)) as caught:
        deployment.run()
    failure = failure_of(caught.value, step=None)
    assert failure is not None
    assert failure.code == code
    assert not deployment.store.list_metrics("job_1")
    if code == "path_not_allowed":
        assert str(deployment.outside) not in failure.detail


@pytest.mark.parametrize("name", ["tiny", "judge"])
def test_a_name_that_was_taken_off_the_registry_opens_nothing(deployment: Deployment, name: str) -> None:
    deployment.register({name: deployment.outside / name})
    deployment.create({name: name})
    deployment.register({})
    with pytest.raises(ScoringRefused) as caught:
        deployment.run()
    assert caught.value.code == "path_not_allowed"


def test_what_has_not_changed_is_loaded(deployment: Deployment) -> None:
    """A link within the roots, as caches of the hub have them, and a registered folder elsewhere."""
    blob = deployment.root / "blob"
    (deployment.root / "tiny" / "model.safetensors").rename(blob)
    (deployment.root / "tiny" / "model.safetensors").symlink_to(blob)
    deployment.register({"judge": deployment.outside / "judge"})
    deployment.create({"judge": "judge"})
    assert deployment.run() == 0
