"""Jobs that go on from a checkpoint of another: what fits, and what is refused with the reason."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.sql_store import SqlStore
from tests.api.acting import claimed, create, saved


def test_a_job_goes_on_from_a_checkpoint_of_another(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    name = saved(store, create(client, spec)["id"], 3)
    job = create(client, spec | {"resume_from": name, "priority": 9})
    assert (job["resume_from"], job["priority"]) == (name, 9)
    assert (job["progress"]["step"], job["progress"]["percent"]) == (3, 75.0)
    assert store.get_job(job["id"]).resolved["resume_from"] == {
        "path": "/a/step-3",
        "sha256": "ab" * 32,
        "step": 3,
        "job_id": name.partition("@")[0],
        "name": "step-3",
        "same_kl": True,
        "same_evaluation": True,
    }
    other = create(client, spec | {"resume_from": name, "config": spec["config"] | {"kl": {"beta": 0.5}}})
    assert store.get_job(other["id"]).resolved["resume_from"]["same_kl"] is False
    attempt = claimed(store, job["id"]).attempt
    store.record_step(job["id"], attempt, step=4, metrics={}, timings={})
    assert client.get(job["links"]["self"]).json()["progress"]["eta_s"] == 0


@pytest.mark.parametrize(
    ("section", "changed", "same"),
    [
        ("reward", {"kind": "length", "target_tokens": 7}, False),
        ("evaluation", {"gold_reward": {"kind": "length", "target_tokens": 7}}, False),
        ("rollout", {"temperature": 0.5}, False),
        ("rollout", {"max_new_tokens": 5}, False),
        ("rollout", {"top_k": 5, "allow_truncated_sampling": True}, False),
        ("rollout", {"batch_size": 8}, False),  # of the same random numbers other completions get theirs
        ("seed", 5, False),
        ("evaluation", {"every_steps": 1}, True),
        ("kl", {"beta": 0.5}, True),
    ],
)
def test_an_evaluation_holds_for_a_job_that_makes_it_alike(
    client: TestClient, store: SqlStore, spec: dict[str, Any], section: str, changed: Any, same: bool
) -> None:
    name = saved(store, create(client, spec)["id"], 3)
    if isinstance(changed, dict) and "kind" not in changed:
        changed = spec["config"].get(section, {}) | changed
    other = create(client, spec | {"resume_from": name, "config": spec["config"] | {section: changed}})
    assert store.get_job(other["id"]).resolved["resume_from"]["same_evaluation"] is same


def test_a_leash_that_does_not_hold_is_refused_with_the_reason(
    client: TestClient, spec: dict[str, Any]
) -> None:
    """Each refusal is tested in tests/rlhf_core/config/test_kl.py; here, that its words reach the client whole."""
    for kl, pointer, end in (
        ({"penalty": "kl"}, "/config/kl/penalty", "'hybrid' charges the own token by k1"),
        ({"penalty": "none", "loss": "k1"}, "/config/kl/loss", "use ratio_k1, k2 or k3"),
        ({"loss": "k2"}, "/config/kl", "set one of them to 'none'"),
        ({"penalty": "none", "controller": {"kind": "pi"}}, "/config/kl", "beta is charged nowhere"),
    ):
        answer = client.post("/v1/jobs", json={"config": spec["config"] | {"kl": kl}})
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["pointer"] == pointer
        assert error["detail"].endswith(end)


def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    name = saved(store, create(client, spec)["id"], 3)

    def refused(resume_from: Any = name, **config: Any) -> tuple[int, str, str]:
        body = {"config": spec["config"] | config, "resume_from": resume_from}
        problem = client.post("/v1/jobs", json=body).json()
        return problem["status"], problem["code"], problem["detail"]

    for given in ("", "x", f"{name}/..", name.replace("@", "%"), 7):
        assert refused(given)[:2] == (422, "validation_error")
    for given in (name.replace("step-3", "step-4"), "job_" + "0" * 32 + "@final"):
        assert refused(given)[:2] == (422, "unknown_model")
    mismatch = (422, "checkpoint_mismatch")
    assert refused(model={"name": "plain/"})[:2] == mismatch
    code, detail = refused(model={"name": "base", "lora": {"rank": 4}})[1:]
    assert (code, "rank 8 and alpha 16" in detail) == ("checkpoint_mismatch", True)
    assert refused(model={"name": "base", "lora": None})[:2] == mismatch
    code, detail = refused(model={"name": "base", "value_adapter": {"rank": 4}})[1:]
    assert (code, "no value_adapter" in detail) == (mismatch[1], True)
    code, detail = refused(optimization={"steps": 3})[1:]
    assert (code, "has completed step 3" in detail) == ("checkpoint_mismatch", True)
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_a_checkpoint_of_all_weights_is_a_model_to_score_and_to_train(
    client: TestClient, store: SqlStore, scorer: Any, answering: None, spec: dict[str, Any]
) -> None:
    """It needs no base, a job may start from it, and is then sure of it: retention leaves it alone."""
    spec["config"]["model"]["lora"] = None
    name = saved(store, create(client, spec)["id"], 3)
    source = {"path": "/a/step-3", "base": None}
    answer = client.post("/v1/scores", json={"policy": name, "reference": "base", "input": ["x"]})
    assert answer.status_code == 200
    assert scorer.requests[-1].policy.model_dump() == source

    spec["config"]["model"] = {"name": name}
    job = create(client, spec)
    resolved = store.get_job(job["id"]).resolved
    owner, _, step = name.partition("@")
    assert resolved["model"] == source
    assert resolved["checkpoints"] == [{"job_id": owner, "name": step, "sha256": "ab" * 32}]
    kept = store.get_checkpoint(owner, step)
    assert kept is not None
    assert kept.pinned
    adapter = saved(store, job["id"], 1)
    client.post("/v1/scores", json={"policy": adapter, "reference": name, "input": ["x"]})
    assert scorer.requests[-1].policy.base == source["path"]


def test_another_owner_s_checkpoint_is_not_there(
    keyed_client: TestClient, new_key: Any, store: SqlStore, spec: dict[str, Any]
) -> None:
    mine, theirs = new_key(), new_key()
    name = saved(store, create(keyed_client, spec, **mine)["id"], 3)
    answer = keyed_client.post("/v1/jobs", json=spec | {"resume_from": name}, headers=theirs)
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_model")
    assert create(keyed_client, spec | {"resume_from": name}, **mine)["progress"]["step"] == 3


def test_a_repeated_create_is_answered_even_if_what_it_names_has_gone(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    name = saved(store, create(client, spec)["id"], 3)
    first = create(client, spec | {"resume_from": name}, **{"Idempotency-Key": "k"})
    store.drop_checkpoints(name.partition("@")[0], 1, ["step-3"])
    assert client.post("/v1/jobs", json=spec | {"resume_from": name}).status_code == 422
    again = client.post("/v1/jobs", json=spec | {"resume_from": name}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert again.headers["idempotency-replayed"] == "true"
