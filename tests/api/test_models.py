"""/v1/models: their state is what the scorers say; loading and giving up is asked of all of them."""

from typing import Any

from starlette.testclient import TestClient

from api.services.models import ListedModel
from api.services.residence import Placed
from jobs.residents import ModelState, Resident
from jobs.scoring_wire import ModelSource
from jobs.sql_store import SqlStore
from tests.api.test_bad_input import CANARY, refused


def test_a_model_is_loaded_and_given_up(client: TestClient, scorer: Any, roots: Any) -> None:
    assert [(m["id"], m["kind"], m["state"]) for m in client.get("/v1/models").json()["data"]] == [
        ("base", "base", "unloaded"),
        ("tuned", "adapter", "unloaded"),
    ]
    asked = client.post("/v1/models/tuned/load")
    assert (asked.status_code, asked.json()["state"]) == (202, "loading")
    (source,) = scorer.held
    assert source == ModelSource(path=str(roots / "adapter"), base="org/base")
    facts = {
        "dtype": "float32",
        "vocab_size": 9,
        "max_context": 64,
        "tokenizer_sha256": "0" * 64,
        "bytes": 2**33,
    }
    scorer.held[source] = Resident(source=source, state="loaded", **facts)
    found = client.get("/v1/models/tuned").json()
    assert found | facts | {"state": "loaded", "loaded_on": 1, "scorers": 1, "error": None} == found
    assert client.get("/v1/models/base").json()["state"] == "unloaded"
    gone = client.post("/v1/models/tuned/unload")
    assert (gone.status_code, gone.json()["state"], gone.json()["bytes"]) == (200, "unloaded", None)
    scorer.held[source] = Resident(source=source, state="failed", error="model_load_failed")
    failed = client.get("/v1/models/tuned").json()
    assert (failed["state"], failed["error"]) == ("failed", "model_load_failed")


def test_without_a_scorer_the_names_are_still_listed(client: TestClient, scorer: Any) -> None:
    scorer.is_ready = False
    assert [(m["id"], m["state"], m["scorers"]) for m in client.get("/v1/models").json()["data"]] == [
        ("base", None, 0),
        ("tuned", None, 0),
    ]


def test_a_checkpoint_is_a_model_of_its_owner(
    client: TestClient, store: SqlStore, scorer: Any, spec: dict[str, Any]
) -> None:
    spec["config"]["model"]["lora"] = {"rank": 2}
    job_id = client.post("/v1/jobs", json=spec).json()["id"]
    running = store.claim(job_id, 1, worker="w", lease_s=60)
    assert running is not None
    store.record_checkpoint(job_id, running.attempt, name="step-1", step=1, path="x", sha256="0", size=1)
    found = client.get(f"/v1/models/{job_id}@step-1").json()
    assert (found["id"], found["kind"], found["base"]) == (f"{job_id}@step-1", "adapter", "base")
    assert client.post(f"/v1/models/{job_id}@step-1/load").status_code == 202
    assert [source.base for source in scorer.held] == ["org/base"]
    for name in (f"{job_id}@step-2", f"job_{0:032x}@step-1", CANARY, "org/base", "a/b/c", "%00", "..%2f.."):
        refused(client.get(f"/v1/models/{name}"), 404, "not_found")
        for what in ("load", "unload"):
            refused(client.post(f"/v1/models/{name}/{what}"), 404, "not_found")


def test_one_state_of_several_scorers() -> None:
    model = ListedModel("m", None, (), ModelSource(path="p"))
    cases: dict[tuple[ModelState, ...], ModelState | None] = {
        (): None,
        ("unloaded", "unloaded"): "unloaded",
        ("unloaded", "loaded"): "loaded",
        ("loaded", "failed"): "failed",
        ("failed", "loading", "loaded"): "loading",
    }
    for states, state in cases.items():
        placed = Placed(model=model, states=states, found=None, error=None)
        assert (placed.state, placed.scorers) == (state, len(states))
