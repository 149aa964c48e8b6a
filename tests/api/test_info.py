"""GET /v1/info: what it says is what is enforced."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.version import API_VERSION, VERSION
from jobs.errors import ScoringRefused
from jobs.settings import Settings
from tests.api.conftest import BASE_URL, NewKey
from worker.scorer.queue import FairQueue


def test_each_limit_is_the_one_that_refuses(
    new_app: Callable[[Settings], FastAPI], settings: Settings, new_key: NewKey, answering: None
) -> None:
    some = settings.model_copy(
        update={
            "unsafe_no_auth": False,
            "max_items": 3,
            "max_body_bytes": 2000,
            "requests_per_minute": 50,
            "max_queued_tokens": 1001,
        }
    )
    key = new_key(scopes=["score", "jobs:read"])
    with TestClient(new_app(some), base_url=BASE_URL, headers=key) as client:
        answer = client.get("/v1/info")
        told: dict[str, Any] = answer.json()
        limits = told["limits"]

        def refused(body: dict[str, Any]) -> tuple[int, str]:
            response = client.post("/v1/scores", json=body)
            return response.status_code, response.json().get("code", "")

        assert (told["version"], told["api_version"]) == (VERSION, API_VERSION)
        assert told["default_pair"] == {"policy": "tuned", "reference": "base"}
        most = limits["items_per_request"]
        assert refused({"input": ["a"] * most})[0] == 200
        assert refused({"input": ["a"] * (most + 1)}) == (413, "too_many_items")
        assert refused({"input": "a", "top_k": limits["top_k"]})[0] == 200
        assert refused({"input": "a", "top_k": limits["top_k"] + 1})[0] == 422
        empty = len(b'{"input":""}')
        assert refused({"input": "a" * (limits["body_bytes"] - empty)})[0] == 200
        assert refused({"input": "a" * (limits["body_bytes"] - empty + 1)}) == (413, "request_too_large")
        policy = f'"requests";q={told["quotas"]["requests"]};w={told["quotas"]["requests_window_s"]}'
        assert answer.headers["RateLimit-Policy"] == policy

    queue = FairQueue(max_tokens=1001, max_requests=1)
    queue.check_size(limits["tokens_per_request"])
    with pytest.raises(ScoringRefused, match="at most 500"):
        queue.check_size(limits["tokens_per_request"] + 1)


def test_what_is_not_limited_is_null(client: TestClient, settings: Settings) -> None:
    told = client.get("/v1/info").json()
    assert told["quotas"]["requests"] is None, "without a key nobody counts"
    assert told["quotas"]["queued_jobs"] == settings.queued_jobs_per_owner
    assert told["quotas"]["running_jobs"] is None
    assert told["features"] == {
        "keys": False,
        "hub_models": False,
        "model_folders": True,
        "private_destinations": False,
    }
