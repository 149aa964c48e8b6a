"""POST /v1/jobs?dry_run=true: everything a job needs is checked and told, and nothing is made."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.services import estimate
from jobs.sql_store import SqlStore
from rlhf_core.config.ppo import LoraConfig, PPOConfig
from tests.api.acting import create, saved

HIDDEN, INNER, VOCAB, LAYERS = 4, 8, 16, 2
LINEAR = {"q_proj": (4, 4), "up_proj": (8, 4), "down_proj": (4, 8)}
# One layer: 16 + 32 + 32 weights and a norm of 4. All: 2 · 84 + the embeddings' 64.
PARAMETERS = 232


@pytest.fixture
def model(roots: Path) -> Path:
    """A folder whose files say how large its model is; there are no weights in them."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LINEAR.items()}
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    header = json.dumps(
        {"__metadata__": {}} | {name: {"shape": shape} for name, shape in shapes.items()}
    ).encode()
    folder = roots / "sized"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(500))
    config = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dry(client: TestClient, spec: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/v1/jobs?dry_run=true", json=spec)
    assert response.status_code == 200, response.text
    assert "location" not in response.headers
    return response.json()


def test_nothing_is_made(client: TestClient, store: SqlStore, broker: Any, spec: dict[str, Any]) -> None:
    for _ in range(2):
        told = client.post("/v1/jobs?dry_run=true", json=spec, headers={"Idempotency-Key": "k"}).json()
    assert (told["object"], told["valid"]) == ("job.dry_run", True)
    assert "id" not in told
    assert store.list_jobs() == []
    assert store.find_replay("local", "k", "") is None
    assert broker.published.empty()
    job = create(client, spec, **{"Idempotency-Key": "k"})
    assert told["resolved_config"] == job["config"]
    assert told["resolved_config"]["kl"]["beta"] == 0.05


def test_the_job_shows_the_config_that_the_dry_run_showed(client: TestClient, spec: dict[str, Any]) -> None:
    for asked in (spec, {"type": "score", "config": {"items": ["A text."]}}):
        told = dry(client, asked)["resolved_config"]
        job_id = create(client, asked)["id"]
        shown = client.get(f"/v1/jobs/{job_id}", params={"include": "resolved_config"}).json()
        assert shown["resolved_config"] == told
        assert (shown["config"] == told) == (asked is spec)  # which names no models
    assert told["policy"]


def test_it_refuses_what_a_creation_refuses(client: TestClient, spec: dict[str, Any]) -> None:
    for model in ("nobody", "../..", "tuned"):
        bad = spec | {"config": spec["config"] | {"model": {"name": model}}}
        answers = [client.post(f"/v1/jobs{query}", json=bad).json() for query in ("", "?dry_run=true")]
        codes = {answer["code"] for answer in answers}
        assert len(codes & {"unknown_model", "path_not_allowed", "adapter_not_trainable"}) == len(codes) == 1
    assert client.post("/v1/jobs?dry_run=true", json={}).status_code == 422
    assert client.post("/v1/jobs?dry_run=perhaps", json=spec).status_code == 422


def test_no_folder_of_the_server_is_told(
    client: TestClient, roots: Path, model: Path, spec: dict[str, Any]
) -> None:
    spec["config"] |= {"model": {"name": "./sized"}, "data": {"prompts_file": "prompts.jsonl"}}
    for body in (spec, {"type": "score", "config": {"items": ["a"]}}):
        assert str(roots) not in client.post("/v1/jobs?dry_run=true", json=body).text


def test_the_default_pair_is_named(client: TestClient) -> None:
    told = dry(client, {"type": "score", "config": {"items": ["a"] * 5, "checkpoint": {"every_items": 2}}})
    assert (told["resolved_config"]["policy"], told["resolved_config"]["reference"]) == ("tuned", "base")
    assert told["estimate"] == {"steps": 3, "tokens": 5, "memory_bytes": None}  # org/base is no folder here
    (warning,) = told["warnings"]
    assert warning.startswith("memory_bytes is null")


def test_steps_count_from_the_checkpoint(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    name = saved(store, create(client, spec)["id"], 3)
    told = dry(client, spec | {"resume_from": name})
    assert (told["estimate"]["steps"], told["estimate"]["tokens"]) == (
        1,
        16 * 16,
    )  # of 4; 16 completions of 16


def config(**changes: Any) -> PPOConfig:
    """Four completions of 2 tokens in two minibatches, after prompts of 1 + 6 // 3 tokens."""
    values = {
        "model": {"name": "m", "lora": None} | changes.pop("model", {}),
        "data": {"prompts": ["a", "abcdef"]},
        "reward": {"kind": "sentiment"},
        "rollout": {"batch_size": 4, "max_new_tokens": 2},
        "optimization": {"steps": 10, "minibatches": 2},
    }
    return PPOConfig.model_validate(values | changes)


def test_memory_is_that_of_weights_gradients_moments_reference_and_activations(model: Path) -> None:
    shape = estimate.shape_of(str(model))
    assert shape is not None
    assert (shape.parameters, shape.layers, len(shape.linear)) == (PARAMETERS, LAYERS, 6)
    assert "CHUNK_BYTES = 48 * 2**20" in Path("rlhf_core/chunked.py").read_text()
    assert estimate.CHUNK_BYTES == 48 * 2**20
    # Of a token each layer keeps 14 · 4 + 5 · 8 = 96 floats; a minibatch is 2 rows of 3 + 2 tokens.
    activations = 4 * (96 * LAYERS) * 2 * 5
    # All weights: policy, gradient and two moments, and the reference: 5 floats a parameter.
    fixed = estimate.RUNTIME_BYTES + estimate.CHUNK_BYTES
    found = estimate.of_training(config(), 0, shape)
    assert found == (10, 10 * 4 * 2, fixed + 4 * 5 * PARAMETERS + activations)
    # Rank 2 beside each linear layer: 2 · (8 + 12 + 12) a layer, twice with the value function's own.
    adapter = 2 * 32 * LAYERS
    assert shape.adapter_parameters(LoraConfig(rank=2)) == adapter
    for models, count in (
        ({"lora": {"rank": 2}}, 1),
        ({"lora": {"rank": 2}, "value_adapter": {"rank": 2}}, 2),
    ):
        found = estimate.of_training(config(model=models), 0, shape)
        assert found.memory_bytes == fixed + 4 * (PARAMETERS + 4 * count * adapter) + activations
    # With gradient checkpointing one layer's, and each layer's input.
    found = estimate.of_training(config(model={"gradient_checkpointing": True}), 0, shape)
    assert found.memory_bytes == fixed + 4 * 5 * PARAMETERS + 4 * (96 + LAYERS * 4) * 2 * 5


def test_loading_counts_where_it_takes_more(model: Path) -> None:
    shape = estimate.shape_of(str(model))
    assert shape is not None
    heavy = shape._replace(file_bytes=10**12)
    found = estimate.of_training(config(model={"lora": {"rank": 2}}), 0, heavy)
    assert found.memory_bytes == estimate.RUNTIME_BYTES + 10**12 + 4 * PARAMETERS


def test_a_dry_run_of_a_folder_measures_it(client: TestClient, model: Path, spec: dict[str, Any]) -> None:
    spec["config"]["model"] = {"name": "sized/"}
    told = dry(client, spec)
    assert told["estimate"]["memory_bytes"] > estimate.RUNTIME_BYTES
    assert told["warnings"] == []
    spec["config"]["data"] = {"prompts_file": "prompts.jsonl"}
    assert ["128 tokens" in warning for warning in dry(client, spec)["warnings"]] == [True]


HEADERS = (b"[]", b'{"a":{}}', b'{"a":', b'{"a":{"shape":[1e999]}}', b'{"a":{"shape":[%s]}}' % (b"9" * 30))


def test_files_that_cannot_be_read_are_not_measured(
    client: TestClient, model: Path, spec: dict[str, Any]
) -> None:
    spec["config"]["model"] = {"name": "sized/"}
    for broken in (b"", b"\xff" * 8, *(struct.pack("<Q", len(header)) + header for header in HEADERS)):
        (model / "model.safetensors").write_bytes(broken)
        assert dry(client, spec)["estimate"]["memory_bytes"] is None


@pytest.mark.parametrize("size", ["1e999", "-1e999", "NaN", "9" * 30, "-5", "2.5", '"4"', "[4]"])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_a_config_that_no_model_has_is_not_measured(
    client: TestClient, model: Path, spec: dict[str, Any], name: str, size: str
) -> None:
    config = {"hidden_size": "16", "num_hidden_layers": "2", "intermediate_size": "4"} | {name: size}
    (model / "config.json").write_text(
        "{{{}}}".format(",".join(f'"{key}": {value}' for key, value in config.items()))
    )
    spec["config"]["model"] = {"name": "sized/"}
    assert dry(client, spec)["estimate"]["memory_bytes"] is None
