"""Which names become which folders, and which become none."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.errors import FileNotFound, PathNotAllowed, UnknownModel
from api.services.models import ModelResolver
from jobs.scoring_wire import ModelSource
from jobs.settings import Registry, Settings
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from rlhf_core.errors import UnsafeModel
from tests.rlhf_core.hostile_folders import UNSAFE

JOB = "job_" + "a" * 32


@pytest.fixture
def resolver(settings: Settings, store: SqlStore) -> ModelResolver:
    return ModelResolver(settings, store)


def test_registered_names(resolver: ModelResolver, roots: Path) -> None:
    assert resolver.resolve("base", "me") == ModelSource(path="org/base")
    tuned = resolver.resolve("tuned", "me")
    assert tuned == ModelSource(path=str(roots.parent / "roots/adapter"), base="org/base")
    assert resolver.default_pair() == ("tuned", "base")


def test_a_source_beside_the_registry_needs_no_leading_dot(settings: Settings, roots: Path) -> None:
    models = {
        name: {"source": name} for name in ("roots/plain", "roots/none", str(roots / "plain"), "org/base")
    }
    assert settings.models_file is not None
    settings.models_file.write_text(json.dumps({"models": models}))
    found = settings.registry
    assert found.source("roots/plain").path == str(roots / "plain") == found.source(str(roots / "plain")).path
    assert found.source("roots/none").path == "roots/none"  # no folder: a hub id
    assert found.source("org/base").path == "org/base"


def test_an_adapter_of_an_adapter_is_no_registry() -> None:
    with pytest.raises(ValueError, match="'b' is the base of an adapter"):
        Registry.model_validate(
            {
                "models": {
                    "a": {"source": "a", "base": "b"},
                    "b": {"source": "b", "base": "c"},
                    "c": {"source": "c"},
                }
            }
        )


def test_without_a_default_pair_names_are_needed(store: SqlStore) -> None:
    with pytest.raises(UnknownModel, match="default pair"):
        ModelResolver(Settings(), store).default_pair()


def test_a_jobs_checkpoint_stands_on_the_jobs_model(
    resolver: ModelResolver, store: SqlStore, spec: dict[str, Any]
) -> None:
    resolved = {"model": {"path": "org/base", "base": None}}
    store.create_job(JOB, "me", PPOSpec.model_validate(spec), resolved)
    job = store.claim(JOB, 1, worker="w", lease_s=60)
    assert job is not None
    store.record_checkpoint(JOB, job.attempt, name="step-40", step=40, path="/a/b", sha256="0", size=1)
    assert resolver.resolve(f"{JOB}@step-40", "me") == ModelSource(path="/a/b", base="org/base")
    for name, owner in (
        (f"{JOB}@step-40", "you"),
        (f"{JOB}@final", "me"),
        (f"{JOB}@../x", "me"),
        (JOB, "me"),
    ):
        with pytest.raises((UnknownModel, PathNotAllowed)):
            resolver.resolve(name, owner)


def test_folders_below_a_root(resolver: ModelResolver, roots: Path) -> None:
    plain = str((roots / "plain").resolve())
    assert resolver.resolve(str(roots / "plain"), "me") == ModelSource(path=plain)
    assert resolver.resolve("./plain", "me") == ModelSource(path=plain)
    adapter = resolver.resolve(str(roots / "adapter" / ".." / "adapter"), "me")
    assert adapter == ModelSource(path=str((roots / "adapter").resolve()), base=plain)


def hostile_paths(roots: Path) -> list[str]:
    outside = roots.parent / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (roots / "link").symlink_to(outside)
    (roots.parent / "roots-evil").mkdir()
    ups = ["../" * n for n in range(1, 12)]
    return [
        *(f"{roots}/{up}etc" for up in ups),
        *(f"./{up}etc" for up in ups),
        *(f"plain/{up}../outside" for up in ups),
        str(outside),
        f"{roots}/link",
        f"{roots}/plain/../link",
        "link/",
        f"{roots}-evil",
        f"{roots}/..",
        "/",
        "/etc/passwd",
        "//etc",
        "/proc/self/root/etc",
        "..",
        "a/\0",
        "a/" * 2049,
        f"{roots}/plain\0",
    ]


def test_no_path_leads_out_of_the_roots(resolver: ModelResolver, roots: Path) -> None:
    for name in hostile_paths(roots):
        with pytest.raises(PathNotAllowed):
            resolver.resolve(name, "me")
        with pytest.raises(PathNotAllowed):
            resolver.resolve_file(name)


NOTHING = ["nope", "org/name", "./nope", ".", "a/" * 2000, "x" * 5000, "y" * 300 + "/z", "~root", "~/x"]
NOTHING += [
    "file:plain",
    "hf://org/x",
    "..%2f..%2fetc",
    "\\\\host\\share",
    "prompts.jsonl",
    "./prompts.jsonl",
]


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_nothing_is_unknown(resolver: ModelResolver, name: str) -> None:
    with pytest.raises(UnknownModel):
        resolver.resolve(name, "me")


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        '"x"',
        "{}",
        "[" * 100_000,
        '{"base_model_name_or_path": null}',
        '{"base_model_name_or_path": ["base"]}',
        '{"base_model_name_or_path": "/etc"}',
        '{"base_model_name_or_path": "org/unregistered"}',
        '{"base_model_name_or_path": "tuned"}',
        '{"base_model_name_or_path": "./adapter"}',
    ],
)
def test_an_adapter_stands_only_on_what_a_request_could_name(
    resolver: ModelResolver, roots: Path, config: str
) -> None:
    (roots / "adapter" / "adapter_config.json").write_text(config)
    with pytest.raises((UnknownModel, PathNotAllowed)):
        resolver.resolve("./adapter", "me")


@pytest.mark.parametrize("named", ["base", "org/base"])
def test_an_adapter_may_name_a_registered_base_or_its_source(
    resolver: ModelResolver, roots: Path, named: str
) -> None:
    config = json.dumps({"base_model_name_or_path": named})
    (roots / "adapter" / "adapter_config.json").write_text(config)
    assert resolver.resolve("./adapter", "me").base == "org/base"


def test_prompt_files_below_the_roots(resolver: ModelResolver, roots: Path) -> None:
    expected = os.path.realpath(roots / "prompts.jsonl")
    assert resolver.resolve_file("prompts.jsonl") == expected
    assert resolver.resolve_file(str(roots / "prompts.jsonl")) == expected
    for name in ("nope.jsonl", "plain", ".", "x" * 4000):
        with pytest.raises(FileNotFound):
            resolver.resolve_file(name)


def test_without_roots_no_path_is_allowed(store: SqlStore, roots: Path) -> None:
    with pytest.raises(PathNotAllowed):
        ModelResolver(Settings(), store).resolve(str(roots / "plain"), "me")


@pytest.fixture
def hub_resolver(settings: Settings, store: SqlStore) -> ModelResolver:
    return ModelResolver(settings.model_copy(update={"allow_hub_models": True}), store)


def test_a_hub_id_is_a_model_only_where_the_deployment_says_so(
    resolver: ModelResolver, hub_resolver: ModelResolver
) -> None:
    for name in ("org/name", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b.c_d-e"):
        assert hub_resolver.resolve(name, "me") == ModelSource(path=name)
        with pytest.raises(UnknownModel, match="takes no hub ids"):
            resolver.resolve(name, "me")


def test_without_roots_a_hub_id_is_told_from_a_path(store: SqlStore) -> None:
    with pytest.raises(UnknownModel, match="takes no hub ids"):
        ModelResolver(Settings(), store).resolve("org/name", "me")


def test_a_path_wins_over_a_hub_id(hub_resolver: ModelResolver, roots: Path) -> None:
    (roots / "org").mkdir()
    (roots / "plain").rename(roots / "org" / "plain")
    assert hub_resolver.resolve("org/plain", "me").path == os.path.realpath(roots / "org" / "plain")
    (roots / "org" / "empty").mkdir()
    with pytest.raises(UnknownModel):  # there, and no model
        hub_resolver.resolve("org/empty", "me")
    (roots / "org" / "out").symlink_to("/etc")
    (roots / "org" / "dangling").symlink_to(roots / "none")
    with pytest.raises(PathNotAllowed):
        hub_resolver.resolve("org/out", "me")
    with pytest.raises(UnknownModel):
        hub_resolver.resolve("org/dangling", "me")


NO_HUB_IDS = [
    *("nope", "a/b/c", "./a", "../a", "a/..", "/a", "a/", "~/x", "hf://org/x", "a/b@main", "-a/b", "a/-b"),
    *("a b/c", "a/b\n", "ä/b", "a/" + "b" * 97, "datasets:x/y", "file:plain"),
]


@pytest.mark.parametrize("name", NO_HUB_IDS)
def test_what_no_repository_is_called_is_never_asked_for(hub_resolver: ModelResolver, name: str) -> None:
    with pytest.raises((UnknownModel, PathNotAllowed)):
        hub_resolver.resolve(name, "me")


def test_hostile_paths_stay_out_where_hub_ids_are_allowed(hub_resolver: ModelResolver, roots: Path) -> None:
    for name in hostile_paths(roots):
        with pytest.raises((PathNotAllowed, UnknownModel)):
            hub_resolver.resolve(name, "me")


def test_an_adapter_may_stand_on_a_hub_id_where_a_request_could_name_it(
    resolver: ModelResolver, hub_resolver: ModelResolver, roots: Path
) -> None:
    config = json.dumps({"base_model_name_or_path": "org/unregistered"})
    (roots / "adapter" / "adapter_config.json").write_text(config)
    assert hub_resolver.resolve("./adapter", "me").base == "org/unregistered"
    with pytest.raises(UnknownModel, match="takes no hub ids"):
        resolver.resolve("./adapter", "me")


CONFIGS = [name for name in UNSAFE if not name.startswith(("only ", "endless "))]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_asks_for_code_is_no_model(resolver: ModelResolver, roots: Path, name: str) -> None:
    """What the weights hold is seen where they are loaded: tests/rlhf_core/test_model_folder.py."""
    UNSAFE[name](roots / "plain")
    for asked in ("./plain", "./adapter"):  # whose base it is
        if name == "module to import" and asked == "./plain":
            continue
        with pytest.raises(UnsafeModel):
            resolver.resolve(asked, "me")


def test_over_http_it_is_a_422_that_says_why(client: TestClient, roots: Path) -> None:
    UNSAFE["auto_map in config.json"](roots / "plain")
    answer = client.post("/v1/scores", json={"input": "a", "policy": "./plain", "reference": "./plain"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsafe_model")
    assert "auto_map" in answer.json()["detail"]
    assert str(roots) not in answer.text
