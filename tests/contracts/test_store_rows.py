"""jobs.store.Store, on SQLite and on PostgreSQL: what is written is read, in order and by whom it belongs to."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from jobs.errors import CheckpointGone, IdempotencyKeyReused, JobNotFound
from jobs.spec import JOB_SPEC, NewEvent
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from jobs.store_jobs import JobFilter
from tests.contracts.store_jobs import (
    CHECKPOINT,
    FAILURE,
    LEASE_S,
    SAMPLE,
    SHARD,
    SPEC,
    STATES,
    claim,
    create,
    reap_later,
)


def test_everything_written_is_read_back_equal(store: SqlStore, clock: Any) -> None:
    created = create(store)
    assert created == store.get_job("job_1")
    assert created.spec == SPEC
    assert created.resolved == {"model": {"path": "/m", "base": None}}
    attempt = claim(store).attempt
    data = {"kl": 0.1 + 0.2, "ended": True, "token_kl": [0.1 + 0.2], "token_texts": ["é\x00"]}
    samples = [replace(SAMPLE, index=i, completion="é\x00" * i, data=data) for i in range(3)]
    clock.time += 1
    metrics = {"kl": 0.1 + 0.2, "tiny": 5e-324, "undefined": float("nan"), "huge": float("inf")}
    event = NewEvent(type="eval.completed", message="m\x00", level="warning", data={"x": [1, None]})
    store.record_step("job_1", attempt, step=1, metrics=metrics, timings={"t": 2}, samples=samples)
    store.record_step("job_1", attempt, step=2, metrics=metrics, timings={}, events=[event, event])
    job = store.get_job("job_1")
    assert (job.step, job.latest) == (2, {"kl": 0.1 + 0.2, "tiny": 5e-324})
    assert job.progress_at == clock.time
    rows = store.list_metrics("job_1")
    assert [(r.step, r.metrics, r.timings, r.attempt) for r in rows] == [
        (1, job.latest, {"t": 2.0}, attempt),
        (2, job.latest, {}, attempt),
    ]
    assert store.list_metrics("job_1", from_step=2) == store.list_metrics("job_1", every=2) == rows[1:]
    assert store.list_metrics("job_1", limit=1) == rows[:1]
    assert store.list_samples("job_1") == samples
    assert store.list_samples("job_1", step=1, kind="rollout", limit=2) == samples[:2]
    high = replace(SAMPLE, index=3, data={"kl": 9, "reward": -0.5})
    store.record_samples("job_1", attempt, [replace(high, data={"kl": 0.0}), high])
    by_kl = [high, *samples[::-1]]
    assert store.list_samples("job_1", order_by="kl", newest_first=True) == by_kl
    after = (1, "rollout", 2)
    assert store.list_samples("job_1", order_by="kl", newest_first=True, after=after) == by_kl[2:]
    assert store.list_samples("job_1", order_by="reward", limit=2) == by_kl[:1] + samples[:1]
    assert store.list_samples("job_1", step=2) == store.list_samples("job_1", kind="eval") == []
    stored = store.list_events("job_1", after=2)
    assert [(e.seq, e.type, e.message, e.level, e.data) for e in stored] == [
        (seq, "eval.completed", "m\x00", "warning", {"x": [1, None]}) for seq in (3, 4)
    ]
    assert store.list_events("job_1", after=2, limit=1) == stored[:1]
    store.finish("job_1", attempt, Status.FAILED, error=FAILURE, result={"a": [1.5, float("nan")]})
    ended = store.get_job("job_1")
    assert ended.error == FAILURE
    assert ended.result == {"a": [1.5, None]}
    assert store.get_version("job_1") == ended.version


def test_a_resumed_attempt_overwrites_the_steps_it_repeats(store: SqlStore, clock: Any) -> None:
    create(store)
    first = claim(store).attempt
    store.record_step("job_1", first, step=7, metrics={"a": 1.0}, timings={}, samples=[SAMPLE])
    reap_later(store, clock)
    second = claim(store).attempt
    again = replace(SAMPLE, completion="again")
    store.record_step("job_1", second, step=7, metrics={"b": 2.0}, timings={}, samples=[again])
    assert [(r.step, r.metrics, r.attempt) for r in store.list_metrics("job_1")] == [(7, {"b": 2.0}, second)]
    assert store.list_samples("job_1") == [again]


def test_checkpoints(store: SqlStore) -> None:
    create(store)
    attempt = claim(store).attempt
    kinds: list[dict[str, Any]] = [
        CHECKPOINT | {"name": "final", "step": 9},
        CHECKPOINT | {"name": "step-8", "step": 8},
        CHECKPOINT,
    ]
    final, eighth, first = (store.record_checkpoint("job_1", attempt, **kind) for kind in kinds)
    assert store.list_checkpoints("job_1") == [first, eighth, final]
    assert len({c.id for c in (first, eighth, final)}) == 3
    assert first.bytes == 2**40
    replaced = store.record_checkpoint("job_1", attempt, **{**CHECKPOINT, "sha256": "1" * 64, "size": 1})  # type: ignore[arg-type]
    assert replaced.id != first.id
    assert store.get_checkpoint("job_1", "step-1") == replaced
    store.drop_checkpoints("job_1", attempt, ["step-1", "step-8", "never"])
    assert store.list_checkpoints("job_1") == [final]
    assert store.get_checkpoint("job_1", "step-8") is None
    assert store.get_checkpoint("job_1", "final\x00") is None


def test_a_checkpoint_that_a_job_goes_on_from_outlives_retention(store: SqlStore) -> None:
    create(store)
    attempt = claim(store).attempt
    for step in (1, 2):
        save = {**CHECKPOINT, "name": f"step-{step}", "step": step}
        store.record_checkpoint("job_1", attempt, **save)  # type: ignore[arg-type]
    start = {"path": "/p", "sha256": "0" * 64, "step": 1, "job_id": "job_1", "name": "step-1"}
    store.create_job("job_2", "me", SPEC, {"resume_from": start})
    assert [c.pinned for c in store.list_checkpoints("job_1")] == [True, False]
    names = ["step-1", "step-2"]
    assert store.drop_checkpoints("job_1", attempt, names, also_pinned=False) == ["step-2"]
    for gone in ({"name": "step-2"}, {"job_id": "job_2"}, {"sha256": "1" * 64}):
        with pytest.raises(CheckpointGone):
            store.create_job("job_3", "me", SPEC, {"resume_from": start | gone}, idempotency_key="k")
    assert store.find_replay("me", "k", "") is None, "the key is free again"
    assert store.drop_checkpoints("job_1", attempt, names) == names, "none of them is there any more"
    assert store.list_checkpoints("job_1") == []
    assert [job.id for job in store.list_jobs()] == ["job_2", "job_1"]


def test_shards(store: SqlStore) -> None:
    spec = JOB_SPEC.validate_python({"type": "score", "config": {"items": ["a", {"text": "b\x00"}]}})
    job = store.create_job("job_1", "me", spec, {"checkpoints": []}).job
    assert job.spec == spec
    attempt = claim(store).attempt
    assert store.list_shards("job_1") == []
    for shard in (SHARD, replace(SHARD, index=1), replace(SHARD, path="job_1/1/again", items=2)):
        store.record_shard("job_1", attempt, shard, metrics={"n": 3.0}, timings={"tokens_per_s": 9.0})
        job = store.get_job("job_1")
        assert (job.step, job.latest) == (shard.index + 1, {"n": 3.0, "tokens_per_s": 9.0})
    first, second = store.list_shards("job_1")
    assert {name: getattr(first, name) for name in vars(SHARD)} == vars(
        replace(SHARD, path="job_1/1/again", items=2)
    )
    assert (second.index, second.attempt) == (1, attempt)
    assert [(row.step, row.metrics, row.timings) for row in store.list_metrics("job_1")] == [
        (1, {"n": 3.0}, {"tokens_per_s": 9.0}),
        (2, {"n": 3.0}, {"tokens_per_s": 9.0}),
    ]
    store.record_checkpoint("job_1", attempt, **CHECKPOINT)
    assert store.list_folders("job_1") == {"job_1/1/again", "job_1/1/s", CHECKPOINT["path"]}
    assert store.list_folders("job_2") == set()


def test_a_shard_forgives_crashes_as_a_checkpoint_does(store: SqlStore) -> None:
    create(store)
    for index in (0, 1, 1):
        attempt = claim(store).attempt
        store.record_shard("job_1", attempt, replace(SHARD, index=index), metrics={}, timings={})
        status = store.hand_back("job_1", attempt, reason="r", crashed=True)
    assert (status, store.get_job("job_1").crash_count) == (Status.FAILED, 2)  # of max_attempts = 2


def test_the_checkpoints_that_a_job_scores_with_are_kept(store: SqlStore) -> None:
    create(store)
    saved = store.record_checkpoint("job_1", claim(store).attempt, **CHECKPOINT)
    named = [{"job_id": "job_1", "name": saved.name, "sha256": saved.sha256}]
    store.create_job("job_2", "me", SPEC, {"checkpoints": named})
    kept = store.get_checkpoint("job_1", saved.name)
    assert kept is not None
    assert kept.pinned
    with pytest.raises(CheckpointGone):
        store.create_job("job_3", "me", SPEC, {"checkpoints": [*named, named[0] | {"name": "step-9"}]})


def test_strangers_see_no_job(store: SqlStore) -> None:
    create(store)
    requests = [partial(store.request, action=action) for action in Action]
    for call in (store.get_job, store.get_version, *requests):
        for job_id, owner in (("job_1", "you"), ("job_2", "me"), ("job_2", None), ("job_1\x00", None)):
            with pytest.raises(JobNotFound):
                call(job_id, owner=owner)
    assert store.get_job("job_1", "me").id == "job_1"
    assert store.list_jobs(owner="you") == []


def test_pages_newest_first(store: SqlStore) -> None:
    for n in range(5):
        create(store, f"job_{n}")
    claim(store, "job_3")
    store.request("job_3", Action.CANCEL)
    claim(store, "job_1")
    ids = [job.id for job in store.list_jobs(limit=3)]
    assert ids == ["job_4", "job_3", "job_2"]
    assert [job.id for job in store.list_jobs(after=ids[-1], limit=3)] == ["job_1", "job_0"]
    for where in ({}, {"after": ids[-1]}, {"oldest_first": True, "limit": 2}):
        assert store.list_versions(**where) == [(job.id, job.version) for job in store.list_jobs(**where)]
    by_status = {
        status: [job.id for job in store.list_jobs(owner="me", where=JobFilter(statuses=[status]))]
        for status in STATES
    }
    assert {status: found for status, found in by_status.items() if found} == {
        "queued": ["job_4", "job_2", "job_0"],
        "running": ["job_1"],
        "cancelling": ["job_3"],
    }
    with pytest.raises(ValueError, match="nonsense"):
        store.list_jobs(where=JobFilter(statuses=["nonsense"]))


def test_messages_are_sent_once_per_epoch_and_again_when_nobody_claims(store: SqlStore, clock: Any) -> None:
    def waiting() -> list[str]:
        return [job.id for job in store.undispatched(resend_after_s=60.0)]

    create(store)
    version = store.get_version("job_1")
    assert waiting() == ["job_1"]
    store.mark_dispatched("job_1", 1)
    assert waiting() == []
    clock.time += 60.5
    assert waiting() == ["job_1"]
    store.mark_dispatched("job_1", 1)
    clock.time += 60.5
    assert waiting() == [], "the second pause is twice as long"
    clock.time += 60.0
    assert waiting() == ["job_1"]
    assert store.get_version("job_1") == version, "dispatching is not visible"
    attempt = claim(store).attempt
    assert waiting() == []
    store.hand_back("job_1", attempt, reason="r")
    assert waiting() == ["job_1"]
    store.mark_dispatched("job_1", 2)
    assert waiting() == []
    store.mark_dispatched("job_1", 1)  # late, of the epoch before
    assert waiting() == []
    clock.time += 60.5
    assert waiting() == ["job_1"], "a new epoch begins with the short pause"


def test_the_dispatcher_sends_by_priority_and_then_by_the_time_waited(store: SqlStore, clock: Any) -> None:
    for n, priority in enumerate((5, 0, 9, 5, 9)):
        spec = SPEC.model_copy(update={"priority": priority})
        store.create_job(f"job_{n}", "me", spec, {})
        clock.time += 1
    attempt = claim(store, "job_2").attempt
    store.hand_back("job_2", attempt, reason="r")  # it waits anew
    assert [job.id for job in store.undispatched(resend_after_s=60.0)] == [
        "job_4", "job_2", "job_0", "job_3", "job_1",
    ]  # fmt: skip
    assert [job.id for job in store.undispatched(resend_after_s=60.0, limit=1)] == ["job_4"]
    assert [job.id for job in store.list_jobs()] == [f"job_{n}" for n in (4, 3, 2, 1, 0)]


def test_idempotency_keys_belong_to_their_owner_and_their_request(store: SqlStore) -> None:
    first = store.create_job("job_1", "me", SPEC, {}, idempotency_key="k", request_sha256="a")
    again = store.create_job("job_2", "me", SPEC, {}, idempotency_key="k", request_sha256="a")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.job == first.job
    with pytest.raises(IdempotencyKeyReused):
        store.create_job("job_3", "me", SPEC, {}, idempotency_key="k", request_sha256="b")
    other = store.create_job("job_4", "you", SPEC, {}, idempotency_key="k", request_sha256="b")
    assert not other.replayed
    assert store.find_replay("me", "k", "a") == first.job
    assert store.find_replay("you", "k", "b") == other.job
    assert store.find_replay("they", "k", "a") is store.find_replay("me", "l", "a") is None
    with pytest.raises(IdempotencyKeyReused):
        store.find_replay("me", "k", "b")
    assert [job.id for job in store.list_jobs()] == ["job_4", "job_1"]


def test_the_database_clock_runs(clean: SqlStore) -> None:
    # sqlite's unixepoch('now', 'subsec') gives NULL here, integer seconds would lose leases of a second.
    create(clean)
    job = claim(clean)
    assert abs(job.created_at - time.time()) < 300
    assert job.lease_until is not None
    assert job.heartbeat_at is not None
    assert job.lease_until - job.heartbeat_at == pytest.approx(LEASE_S, abs=1.0)
    stamps = {clean.heartbeat(job.id, job.attempt, lease_s=LEASE_S).heartbeat_at for _ in range(50)}
    assert any(stamp is not None and stamp % 1 for stamp in stamps)
