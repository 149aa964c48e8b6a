"""/v1/jobs over HTTP: what a client that creates, watches and cancels jobs relies on."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import product
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.spec import Job, JobFailure, NewEvent, Sample
from jobs.sql_store import SqlStore
from jobs.states import Status


def claimed(store: SqlStore, job_id: str) -> Job:
    job = store.get_job(job_id)
    running = store.claim(job_id, job.epoch, worker="w0@here", lease_s=60)
    assert running is not None
    return running


def create(client: TestClient, spec: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = client.post("/v1/jobs", json=spec, headers=headers)
    assert response.status_code == 201, response.text
    return response.json()


def test_a_created_job_is_there_queued_and_sent(
    client: TestClient, broker: Any, spec: dict[str, Any]
) -> None:
    response = client.post("/v1/jobs", json=spec | {"name": "first", "metadata": {"team": "rl"}})

    job = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    assert response.headers["etag"] == '"1"'
    assert "idempotency-replayed" not in response.headers
    assert (job["status"], job["done"], job["attempt"], job["worker"]) == ("queued", False, 0, None)
    assert (job["name"], job["metadata"]) == ("first", {"team": "rl"})
    assert job["progress"] == {"step": 0, "total_steps": 4, "percent": 0.0, "eta_s": None, "latest": {}}
    assert job["config"]["kl"]["beta"] == 0.05  # defaults are filled in
    assert job["created_at"].endswith("Z")
    assert datetime.fromisoformat(job["created_at"]).microsecond % 1000 == 0
    assert client.get(job["links"]["self"]).json() == job
    assert broker.published.get(timeout=30)[:2] == (job["id"], 1)


def test_a_broker_that_is_down_refuses_no_job(client: TestClient, broker: Any, spec: dict[str, Any]) -> None:
    broker.up = False
    assert create(client, spec)["status"] == "queued"
    ready = client.get("/ready")
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "checks": {"database": "ok", "broker": "down", "scorer": "ok"},
    }


def test_what_the_worker_needs_is_resolved_at_creation(
    client: TestClient, store: SqlStore, spec: dict[str, Any], roots: Any
) -> None:
    spec["config"]["data"] = {"prompts_file": "prompts.jsonl", "eval_prompts": ["There was"]}
    resolved = store.get_job(create(client, spec)["id"]).resolved
    assert resolved == {
        "model": {"path": "org/base", "base": None},
        "checkpoints": [],
        "classifiers": {},
        "prompts_file": str((roots / "prompts.jsonl").resolve()),
        "eval_prompts_file": None,
        "ptx_texts_file": None,
        "resume_from": None,
    }


def test_the_file_of_the_pretraining_mix_is_resolved_likewise(
    client: TestClient, store: SqlStore, spec: dict[str, Any], roots: Any
) -> None:
    spec["config"]["data"] = {"prompts": ["a"], "ptx_texts_file": "prompts.jsonl"}
    spec["config"]["loss"] = {"ptx_coefficient": 0.5}
    resolved = store.get_job(create(client, spec)["id"]).resolved
    assert resolved["ptx_texts_file"] == str((roots / "prompts.jsonl").resolve())


def test_a_poll_with_the_current_etag_costs_a_304(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    url = create(client, spec)["links"]["self"]
    etag = client.get(url).headers["etag"]
    for tags in (etag, f"W/{etag}", f'"0", {etag}', "*"):
        unchanged = client.get(url, headers={"If-None-Match": tags})
        assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)

    claimed(store, url.rpartition("/")[2])
    changed = client.get(url, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
    assert changed.headers["etag"] != etag


def test_one_key_makes_one_job_however_many_ask_at_once(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    def post(_: int) -> Any:
        return client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "same"})

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(post, range(32)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == len(store.list_jobs(limit=100)) == 1
    replayed = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert sorted(replayed, key=str) == [None] + ["true"] * 31


def test_a_key_is_bound_to_the_meaning_of_the_body_not_to_its_spelling(
    client: TestClient, spec: dict[str, Any]
) -> None:
    first = create(client, spec, **{"Idempotency-Key": "k"})
    spelled_out = {"metadata": {}, **dict(reversed(spec.items())), "limits": {"max_attempts": 3}}
    assert create(client, spelled_out, **{"Idempotency-Key": "k"})["id"] == first["id"]

    other = client.post("/v1/jobs", json=spec | {"name": "other"}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


def test_a_repeat_finds_its_job_even_when_what_it_names_has_gone(
    client: TestClient, spec: dict[str, Any], roots: Any
) -> None:
    spec["config"]["data"] = {"prompts_file": "prompts.jsonl"}
    first = create(client, spec, **{"Idempotency-Key": "k"})
    (roots / "prompts.jsonl").unlink()
    again = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["id"]) == (201, first["id"])
    assert again.headers["idempotency-replayed"] == "true"
    assert client.post("/v1/jobs", json=spec).json()["code"] == "file_not_found"
    spec["name"] = "another"
    other = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"})
    assert other.json()["code"] == "idempotency_key_reused"


def test_a_list_leaves_the_configs_out(client: TestClient, spec: dict[str, Any]) -> None:
    job = create(client, spec)
    (listed,) = client.get("/v1/jobs").json()["data"]
    assert not {"config", "diagnosis"} & set(listed)
    assert (
        listed | {name: job[name] for name in ("config", "diagnosis")}
        == client.get(job["links"]["self"]).json()
    )


def test_pages_hold_every_job_once_newest_first(client: TestClient, spec: dict[str, Any]) -> None:
    made = [create(client, spec)["id"] for _ in range(5)]
    seen: list[str] = []
    after: str | None = None
    for more in (True, True, False):
        params = {"limit": 2} | ({"after": after} if after else {})
        page = client.get("/v1/jobs", params=params).json()
        seen += [job["id"] for job in page["data"]]
        assert page["has_more"] is more
        after = page["next_cursor"]
        assert after == (seen[-1] if more else None)
    assert seen == sorted(made, reverse=True)


def test_a_limit_out_of_range_is_moved_inside(client: TestClient, spec: dict[str, Any]) -> None:
    for _ in range(3):
        create(client, spec)
    for limit, size in ((-5, 1), (0, 1), (100_000, 3), (10**30, 3)):
        assert len(client.get("/v1/jobs", params={"limit": limit}).json()["data"]) == size


def test_jobs_are_found_by_their_public_status(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    queued, running, cancelling = (create(client, spec)["id"] for _ in range(3))
    claimed(store, running)
    claimed(store, cancelling)
    client.post(f"/v1/jobs/{cancelling}/cancel")
    for status, job_id in (("queued", queued), ("running", running), ("cancelling", cancelling)):
        data = client.get("/v1/jobs", params={"status": status}).json()["data"]
        assert [(job["id"], job["status"]) for job in data] == [(job_id, status)]


def test_cancel_is_final_at_once_while_queued_and_asked_for_while_running(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    queued, running = (create(client, spec)["id"] for _ in range(2))
    attempt = claimed(store, running).attempt
    expected = [(queued, 200, "cancelled"), (queued, 200, "cancelled"), (running, 202, "cancelling")]
    for job_id, code, status in expected:
        answer = client.post(f"/v1/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (code, status)

    store.finish(running, attempt, Status.SUCCEEDED)  # it finished first
    late = client.post(f"/v1/jobs/{running}/cancel")
    assert (late.status_code, late.json()["code"]) == (409, "invalid_state")
    assert late.json()["instance"] == f"/v1/jobs/{running}/cancel"


def test_pause_and_resume(client: TestClient, store: SqlStore, broker: Any, spec: dict[str, Any]) -> None:
    def ask(action: str) -> tuple[int, str]:
        answer = client.post(f"/v1/jobs/{job_id}/{action}")
        return answer.status_code, answer.json().get("status")

    job_id = create(client, spec)["id"]
    assert broker.published.get(timeout=30)[:2] == (job_id, 1)
    assert ask("pause") == ask("pause") == (200, "paused")
    assert client.get("/v1/jobs", params={"status": "paused"}).json()["data"][0]["done"] is False
    assert ask("resume") == ask("resume") == (200, "queued")
    assert broker.published.get(timeout=30)[:2] == (job_id, 2), "the dispatcher was woken"
    attempt = claimed(store, job_id).attempt
    assert ask("pause") == ask("pause") == (202, "pausing")
    assert ask("resume") == ask("resume") == (200, "running")
    assert ask("pause") == (202, "pausing")
    assert store.hand_back(job_id, attempt, reason="r") is Status.PAUSED
    assert ask("resume") == (200, "queued")
    claimed(store, job_id)
    assert ask("cancel") == (202, "cancelling")
    refused = client.post(f"/v1/jobs/{job_id}/pause")
    assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")
    assert "is cancelling" in refused.json()["detail"]
    assert client.post(f"/v1/jobs/{job_id}/resume").status_code == 409


def saved(store: SqlStore, job_id: str, step: int) -> str:
    """A checkpoint of a running job, by the name a request gives it."""
    attempt = claimed(store, job_id).attempt
    digest, name = "ab" * 32, f"step-{step}"
    store.record_checkpoint(job_id, attempt, name=name, step=step, path=f"/a/{name}", sha256=digest, size=7)
    return f"{job_id}@{name}"


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


def test_a_run_is_reported_with_metrics_samples_events_and_checkpoints(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    job_id = create(client, spec)["id"]
    attempt = claimed(store, job_id).attempt
    told = {"k1": 1.0, "ended": True, "token_ids": [3, 0], "token_texts": ["b", ""], "token_kl": [0.0, 1.0]}
    for step in (1, 2):
        store.record_step(
            job_id,
            attempt,
            step=step,
            metrics={"kl/sequence": step / 4},
            timings={"rollout_s": 0.5},
            samples=[Sample(step=step, kind="rollout", index=0, prompt="a", completion="b", data=told)],
            events=[NewEvent(type="note", message=f"step {step}")],
        )
    store.record_checkpoint(
        job_id, attempt, name="step-2", step=2, path="/a/step-2", sha256="ab" * 32, size=7
    )

    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["progress"]["latest"] == {"kl/sequence": 0.5}
    assert (job["progress"]["step"], job["progress"]["percent"]) == (2, 50.0)
    assert job["progress"]["eta_s"] >= 0
    assert job["worker"]["id"] == "w0@here"

    metrics = client.get(job["links"]["metrics"], params={"from_step": 2}).json()
    assert (metrics["job_id"], metrics["last_step"]) == (job_id, 2)
    (row,) = metrics["rows"]
    assert (row["step"], row["metrics"], row["timings"]) == (2, {"kl/sequence": 0.5}, {"rollout_s": 0.5})

    first = client.get(job["links"]["events"], params={"limit": 2}).json()
    rest = client.get(job["links"]["events"], params={"after": first["next_cursor"]}).json()
    events = first["data"] + rest["data"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [event["message"] for event in events if event["type"] == "note"] == ["step 1", "step 2"]
    assert rest["has_more"] is False

    (save,) = client.get(job["links"]["checkpoints"]).json()["data"]
    assert (save["model"], save["bytes"], save["step"]) == (f"{job_id}@step-2", 7, 2)

    found = client.get(job["links"]["samples"], params={"step": 1, "kind": "rollout"}).json()
    assert [(s["step"], s["completion"], s["data"]) for s in found["data"]] == [(1, "b", told)]
    assert found["data"][0]["data"]["ended"] is True  # which equals 1.0 in Python only
    assert client.get(job["links"]["samples"], params={"limit": 1}).json()["has_more"] is True


def test_a_failed_job_says_why(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    job_id = create(client, spec)["id"]
    failure = JobFailure(code="nan_loss", detail="the loss was NaN", hint="lower the rate", step=3)
    store.finish(job_id, claimed(store, job_id).attempt, Status.FAILED, error=failure)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["done"]) == ("failed", True)
    assert job["finished_at"] is not None
    expected = {"code": "nan_loss", "detail": "the loss was NaN", "hint": "lower the rate"}
    assert job["error"] == expected | {"step": 3, "log_tail": []}


def test_an_unknown_job_is_a_404_everywhere(client: TestClient) -> None:
    ids = ("job_" + "0" * 32, "x", "job_%00", "job_" + "A" * 32, "..%2f..", "%F0%9F%98%80")
    actions = ("/pause", "/resume", "/cancel")
    parts = ("", "/events", "/metrics", "/checkpoints", "/samples", *actions)
    for job_id, part in product(ids, parts):
        method = "POST" if part in actions else "GET"
        response = client.request(method, f"/v1/jobs/{job_id}{part}")
        assert (response.status_code, response.json()["code"]) == (404, "not_found"), (job_id, part)


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
    assert client.get("/health").json() == {"status": "ok"}
