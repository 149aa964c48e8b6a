"""Which weights the scorer may open."""

import json

import pytest

from jobs.errors import ScoringRefused
from jobs.scoring_wire import ModelSource
from jobs.settings import RegisteredModel, Registry
from rlhf_core.models import WeightSource
from tests.worker.scorer.bench import settings_for
from worker.scorer.sources import AllowedSources, default_pair


def test_only_registered_sources_and_folders_below_the_roots_are_opened(tmp_path, tiny):
    (tmp_path / "secret").mkdir()
    inside = tmp_path / "data" / "jobs"
    inside.mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path / "secret")
    registry = tmp_path / "models.json"
    registry.write_text(json.dumps({"models": {"hub": {"source": "org/name"}}}))
    sources = AllowedSources(settings_for(tmp_path, tiny, models_file=registry))
    for path in (str(tiny.base), str(inside / "job_x" / "1" / "final"), "org/name"):
        assert sources.weights(ModelSource(path=path)) == WeightSource(path)
    for path in (
        str(tmp_path / "secret"),
        str(inside / "link"),
        str(inside / ".." / ".." / "secret"),
        "org/other",
        "/",
        "a\0b",
    ):
        for source in (ModelSource(path=path), ModelSource(path=str(tiny.adapter), base=path)):
            with pytest.raises(ScoringRefused) as refused:
                sources.weights(source)
            assert refused.value.code == "path_not_allowed"


def test_an_adapter_without_its_base_is_refused(tmp_path, tiny):
    with pytest.raises(ScoringRefused, match="base"):
        AllowedSources(settings_for(tmp_path, tiny)).weights(ModelSource(path=str(tiny.adapter)))


def test_the_default_pair_names_the_adapter_s_base():
    registry = Registry(
        models={"ref": RegisteredModel(source="/a"), "pol": RegisteredModel(source="/b", base="ref")},
        default_policy="pol",
        default_reference="ref",
    )
    assert default_pair(registry) == (ModelSource(path="/b", base="/a"), ModelSource(path="/a"))
    assert default_pair(Registry()) is None
