"""What hangs on a job, over HTTP: metrics, samples, events, checkpoints, and why it failed."""

from itertools import product
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.spec import JobFailure, NewEvent, Sample
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.api.acting import claimed, create


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
    assert [(one["key"], one["unit"], one["step"], one["value"]) for one in metrics["series"]] == [
        ("kl/sequence", "nats/sequence", [2], [0.5]),
        ("timings/rollout_s", "s", [2], [0.5]),
    ]

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

    result = {
        "model": save["model"],
        "checkpoint_id": save["id"],
        "path": "/a/step-2",
    }  # as it was once written
    store.finish(job_id, attempt, Status.SUCCEEDED, result=result)
    shown = client.get(f"/v1/jobs/{job_id}").json()["result"]
    here = f"/v1/checkpoints/{save['id']}"
    assert shown == {
        "model": save["model"],
        "checkpoint_id": save["id"],
        "checkpoint_url": here,
        "archive_url": f"{here}/archive",
    }
    for url in (job["links"]["self"], job["links"]["checkpoints"], here, "/v1/jobs"):
        assert "/a/step-2" not in client.get(url).text, "a folder of the server is no client's"


@pytest.mark.parametrize(("code", "retryable"), [("nan_loss", False), ("disk_full", True)])
def test_a_failed_job_says_why(
    client: TestClient, store: SqlStore, spec: dict[str, Any], code: str, retryable: bool
) -> None:
    job_id = create(client, spec)["id"]
    failure = JobFailure(code=code, detail="the loss was NaN", hint="lower the rate", step=3)
    store.finish(job_id, claimed(store, job_id).attempt, Status.FAILED, error=failure)
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["done"]) == ("failed", True)
    assert job["finished_at"] is not None
    expected = {"code": code, "detail": "the loss was NaN", "hint": "lower the rate"}
    assert job["error"] == expected | {"step": 3, "attempt": 1, "retryable": retryable, "log_tail": []}


def linked(client: TestClient, url: str, **params: Any) -> list[dict[str, Any]]:
    """Every item, by the Link headers."""
    found: list[dict[str, Any]] = []
    answer = client.get(url, params=params)
    while True:
        page = answer.json()
        found += page["data"]
        assert ("link" in answer.headers) == page["has_more"] == (page["next_cursor"] is not None)
        if not page["has_more"]:
            return found
        answer = client.get(answer.headers["link"].partition(">")[0].lstrip("<"))


def test_events_and_samples_page_by_page(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    job_id = create(client, spec)["id"]
    attempt = claimed(store, job_id).attempt
    for type_, level in (("checkpoint.created", "info"), ("checkpoint.corrupt", "warning"), ("x", "error")):
        store.add_event(job_id, attempt, NewEvent(type=type_, message="m", level=level))
    url = f"/v1/jobs/{job_id}/events"

    def seqs(**params: Any) -> list[int]:
        return [event["seq"] for event in linked(client, url, **params)]

    assert seqs(limit=2) == [1, 2, 3, 4, 5]
    assert seqs(limit=2, order="desc") == [5, 4, 3, 2, 1]
    assert seqs(level="warning", limit=1) == [4, 5]
    assert seqs(type="checkpoint.*", limit=1, order="desc") == [4, 3]
    assert seqs(type="x", after=4) == [5]
    for bad in ({"type": "%"}, {"type": "a*"}, {"level": "debug"}, {"order": "up"}, {"after": -1}):
        assert client.get(url, params=bad).status_code == 422

    data = {"reward": 1.0, "token_ids": [1], "token_kl": [0.5], "token_texts": ["a"]}
    places = [(step, kind, i) for step in (1, 2, 10) for kind in ("eval", "rollout") for i in (0, 1)]
    store.record_samples(
        job_id,
        attempt,
        [Sample(step=s, kind=k, index=i, prompt="p", completion="c", data=data) for s, k, i in places],
    )
    url = f"/v1/jobs/{job_id}/samples"

    def found(**params: Any) -> list[tuple[int, str, int]]:
        return [(one["step"], one["kind"], one["index"]) for one in linked(client, url, **params)]

    assert found(limit=5) == places
    assert found(limit=5, order="desc") == places[::-1]
    assert found(limit=1, kind="eval", step=2) == [(2, "eval", 0), (2, "eval", 1)]
    assert client.get(url, params={"tokens": "false"}).json()["data"][0]["data"] == {"reward": 1.0}
    bounds = (None, 0, 2, 9, 11)
    for low, high in product(bounds, bounds):
        window = {"from_step": low, "to_step": high}
        inside = [p for p in places if (low or 0) <= p[0] <= (11 if high is None else high)]
        given = {name: step for name, step in window.items() if step is not None}
        assert found(limit=3, **given) == inside
        assert found(limit=3, order="desc", kind="eval", **given) == [
            p for p in inside[::-1] if p[1] == "eval"
        ]
        assert found(step=2, **given) == [p for p in inside if p[0] == 2]
    assert client.get(url, params={"from_step": -1}).status_code == 422

    # Numbers that repeat, that no decimal of a cursor would hold, and none: sorted in Python, page by page.
    numbers = [0.1 + 0.2, None, 5e-324, 0.3, -1.5, 0.3, float("nan"), 1e300, 2, None, 0.1, 0.3]
    texts = {"token_texts": ["\x00", '"kl":9']}
    samples = [
        Sample(
            step=s,
            kind=k,
            index=i,
            prompt="p",
            completion="c",
            data=texts | ({} if number is None else {"kl": number}),
        )
        for (s, k, i), number in zip(places, numbers, strict=True)
    ]
    store.record_samples(job_id, attempt, samples)
    kl = {place: n for place, n in zip(places, numbers, strict=True) if n is not None and n == n}
    rising = sorted(kl, key=lambda place: (kl[place], place))
    without = [place for place in places if place not in kl]
    for limit in (1, 5):
        assert found(limit=limit, order_by="kl") == rising + without
        assert found(limit=limit, order_by="kl", order="desc") == rising[::-1] + without[::-1]
        early = [place for place in rising + without if place[0] <= 2]
        assert found(limit=limit, order_by="kl", to_step=2) == early
    assert found(order_by="kl", after="10.eval.9") == [], "behind what is not there"
    assert client.get(url, params={"order_by": "length"}).status_code == 422
    for bad_cursor in ("1", "1.x.0", "99999999999.eval.0", "1.eval.4294967296"):
        assert client.get(url, params={"after": bad_cursor}).json()["code"] == "invalid_cursor"
