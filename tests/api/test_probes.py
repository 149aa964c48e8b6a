"""Probes, and the models that requests may name."""

from typing import Any

from starlette.testclient import TestClient

from jobs.sql_store import SqlStore


def test_models_are_listed_with_their_roles(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [(m["id"], m["kind"], m["base"], m["default_for"]) for m in listed] == [
        ("base", "base", None, ["reference"]),
        ("tuned", "adapter", "base", ["policy"]),
    ]


def test_readiness_needs_database_and_scorer(client: TestClient, scorer: Any, store: SqlStore) -> None:
    scorer.is_ready = False
    assert client.get("/ready").status_code == 503
    assert client.get("/ready").json()["checks"]["scorer"] == "down"
    scorer.is_ready = True
    assert client.get("/ready").status_code == 200
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE api_keys")
    assert client.get("/ready").json()["checks"]["database"] == "down"
    assert client.get("/readyz").status_code == 503
    for path in ("/health", "/healthz", "/livez"):
        assert client.get(path).json() == {"status": "ok"}
