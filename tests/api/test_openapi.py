"""The OpenAPI document says what the service does."""

import json
import tomllib
from itertools import product
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from api.examples import API_KEYS, DETOKENIZE, DIVERGENCES, JOB_PATCHES, JOBS, SCORES, TOKENIZE
from api.schemas_api_keys import NewApiKey
from api.schemas_divergences import DivergencesRequest
from api.schemas_job_requests import JobPatch
from api.schemas_jobs import PublicStatus
from api.schemas_scores import ScoresRequest
from api.schemas_tokenize import DetokenizeRequest, TokenizeRequest
from api.version import API_VERSION, VERSION
from jobs.spec import JobSpec
from jobs.states import Desired, Status, public_status

MODELS: dict[str, Any] = {
    "/v1/jobs": JobSpec,
    "/v1/scores": ScoresRequest,
    "/v1/divergences": DivergencesRequest,
    "/v1/tokenize": TokenizeRequest,
    "/v1/detokenize": DetokenizeRequest,
    "/v1/api-keys": NewApiKey,
}
EXAMPLES = {
    "/v1/jobs": JOBS,
    "/v1/scores": SCORES,
    "/v1/divergences": DIVERGENCES,
    "/v1/api-keys": API_KEYS,
    "/v1/tokenize": TOKENIZE,
    "/v1/detokenize": DETOKENIZE,
}
ROOT = Path(__file__).resolve().parents[2]


def operations(app: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    paths = app.openapi()["paths"]
    return [(method, path, operation) for path, ops in paths.items() for method, operation in ops.items()]


def test_every_operation_has_a_name_of_its_own_and_a_summary(app: FastAPI) -> None:
    names = [operation["operationId"] for _, _, operation in operations(app)]
    assert len(set(names)) == len(names) >= 14
    for _, path, operation in operations(app):
        assert operation["summary"], path
        assert operation["description"], path
        assert operation["tags"], path


def test_every_body_has_examples_that_fit_it(app: FastAPI) -> None:
    for patch in JOB_PATCHES.values():
        JobPatch.model_validate_json(json.dumps(patch["value"]))
    for path, part in EXAMPLES.items():
        adapter = TypeAdapter(MODELS[path])
        for example in part.values():
            adapter.validate_json(json.dumps(example["value"]))
    for _, path, operation in operations(app):
        for kind, content in operation.get("requestBody", {"content": {}})["content"].items():
            assert kind != "application/json" or content.get("examples"), path


def test_every_problem_is_declared_as_one(app: FastAPI) -> None:
    schemas = app.openapi()["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert {"code", "request_id", "retryable", "errors"} <= set(schemas["Problem"]["required"])
    for _, path, operation in operations(app):
        if not path.startswith("/v1"):
            continue
        assert {"401", "403", "413", "422", "429", "500", "503"} <= set(operation["responses"])
        assert ("requestBody" in operation) == ("415" in operation["responses"]), path
        assert ("{" in path) == ("404" in operation["responses"]), path
        assert operation["security"], path
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], (path, status)


def test_every_reference_leads_somewhere(app: FastAPI) -> None:
    document = app.openapi()
    found: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.extend([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(document)
    assert found
    for reference in found:
        at: Any = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_clients_see_every_status_that_the_state_machine_has() -> None:
    assert set(get_args(PublicStatus)) == {public_status(s, d) for s, d in product(Status, Desired)}


def test_the_version_is_that_of_the_project(client: TestClient) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    answer = client.get("/version")
    assert answer.json() == {"name": "kleash", "version": project["version"], "api_version": API_VERSION}
    assert answer.headers["API-Version"] == API_VERSION
    assert project["version"] == VERSION


def test_the_lines_of_a_stream_are_described(app: FastAPI) -> None:
    content = app.openapi()["paths"]["/v1/scores/stream"]["post"]["responses"]["200"]["content"]
    assert content == {"application/jsonl": {"schema": {"$ref": "#/components/schemas/StreamLine"}}}
    kinds = app.openapi()["components"]["schemas"]["StreamLine"]["anyOf"]
    names = [kind["$ref"].rpartition("/")[2] for kind in kinds]
    assert names == ["Score", "FailedScore", "ScoreSummary"]


def test_the_committed_document_is_the_one_that_is_served(app: FastAPI) -> None:
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert committed == json.loads(json.dumps(app.openapi())), "make openapi writes it again"
