"""Rewards over HTTP: which classifiers a job may name, and why a reward is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.sql_store import SqlStore

TONE = {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
}


@pytest.fixture
def tone(roots: Path) -> Path:
    """A classifier's folder below the root."""
    (roots / "tone").mkdir()
    (roots / "tone" / "config.json").write_text(json.dumps(TONE))
    return roots / "tone"


def classifier(model: str, label: str | int | None = "POSITIVE") -> dict[str, Any]:
    return {"kind": "classifier", "model": model, "label": label}


def answer(client: TestClient, spec: dict[str, Any], **config: Any) -> tuple[int, dict[str, Any]]:
    response = client.post("/v1/jobs", json={"config": spec["config"] | config})
    return response.status_code, response.json()


def test_a_job_s_classifiers_are_resolved_at_creation(
    client: TestClient, store: SqlStore, spec: dict[str, Any], tone: Path
) -> None:
    parts = [
        {"name": "tone", "weight": 1.0, "reward": classifier("./tone")},
        {"name": "calm", "weight": -1.0, "reward": classifier(str(tone), 0)},
        {"name": "short", "weight": 0.1, "reward": {"kind": "length", "target_tokens": 8}},
    ]
    status, job = answer(
        client,
        spec,
        reward={"kind": "weighted", "parts": parts},
        evaluation={"gold_reward": classifier("base", None)},
    )
    assert status == 201, job
    found = str(tone.resolve())
    assert store.get_job(job["id"]).resolved["classifiers"] == {
        "./tone": found,
        str(tone): found,
        "base": "org/base",  # of a hub id the worker finds out whether it has one output
    }


@pytest.mark.parametrize(
    ("reward", "code", "reason"),
    [
        (
            classifier("./tone", "JOY"),
            "unusable_classifier",
            "no such label, by name or index; it has NEGATIVE",
        ),
        (classifier("./tone", 2), "unusable_classifier", "no such label"),
        (classifier("./tone", None), "unusable_classifier", "label must name one of NEGATIVE, POSITIVE"),
        (classifier("./plain"), "unusable_classifier", "is no sequence classifier"),
        (classifier("./adapter"), "unusable_classifier", "this one is an adapter"),
        (classifier("tuned"), "unusable_classifier", "this one is an adapter"),
        (classifier("./none"), "unknown_model", "no model folder"),
        (classifier("/etc"), "path_not_allowed", "below one of the configured roots"),
    ],
)
def test_a_classifier_that_is_of_no_use_is_refused_with_the_reason(
    client: TestClient, spec: dict[str, Any], tone: Path, reward: dict[str, Any], code: str, reason: str
) -> None:
    weighted = {"kind": "weighted", "parts": [{"name": "a", "weight": 1.0, "reward": reward}]}
    for config in ({"reward": reward}, {"reward": weighted}, {"evaluation": {"gold_reward": reward}}):
        status, problem = answer(client, spec, **config)
        assert (status, problem["code"]) == (422, code)
        assert reason in problem["detail"]
        assert "JOY" not in json.dumps(problem)  # a problem repeats no input


@pytest.mark.parametrize("config", ["[]", "{", '{"architectures": 1}', "null", "[" * 100_000])
def test_a_classifier_s_config_may_be_anything(
    client: TestClient, spec: dict[str, Any], tone: Path, config: str
) -> None:
    (tone / "config.json").write_text(config)
    status, problem = answer(client, spec, reward=classifier("./tone"))
    assert (status, problem["code"]) == (422, "unusable_classifier")


ONE = {"name": "a", "weight": 1.0, "reward": {"kind": "sentiment"}}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"reward": {"kind": "weighted", "parts": [ONE, ONE]}}, "two share one"),
        ({"reward": {"kind": "weighted", "parts": [ONE | {"name": "gold"}]}}, "exist already"),
        (
            {
                "scores": {"whiten": True},
                "rollout": {"batch_size": 1},
                "optimization": {"steps": 1, "minibatches": 1},
            },
            "a single score is whitened to 0",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(
    client: TestClient, spec: dict[str, Any], config: dict[str, Any], reason: str
) -> None:
    status, problem = answer(client, spec, **config)
    assert (status, problem["code"]) == (422, "validation_error")
    assert any(reason in error["detail"] for error in problem["errors"]), problem


@pytest.mark.parametrize("place", ["reward", "part", "gold"])
def test_the_endpoint_of_a_reward_is_checked(client: TestClient, spec: dict[str, Any], place: str) -> None:
    for url, status in (
        ("https://127.0.0.1/", 422),
        ("http://hooks.example/", 422),
        ("https://hooks.example/", 201),
    ):
        reward: dict[str, Any] = {"kind": "http", "url": url}
        if place == "part":
            reward = {"kind": "weighted", "parts": [{"name": "asked", "weight": 1.0, "reward": reward}]}
        where = {"evaluation": {"gold_reward": reward}} if place == "gold" else {"reward": reward}
        answer = client.post("/v1/jobs", json=spec | {"config": spec["config"] | where})
        assert answer.status_code == status, answer.text
        assert status == 201 or answer.json()["code"] == "url_not_allowed"
