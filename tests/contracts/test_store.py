"""jobs.ports.Store, on SQLite and on PostgreSQL: the state table, the fence, the races."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import update

from jobs.errors import (
    CheckpointGone,
    IdempotencyKeyReused,
    IllegalTransition,
    JobNotFound,
    LeaseLost,
    StoreUnavailable,
)
from jobs.schema import api_keys, jobs
from jobs.spec import JOB_SPEC, Job, JobFailure, NewEvent, NewShard, PPOSpec, Sample
from jobs.sql_store import SqlStore
from jobs.states import SOURCES, TERMINAL, Action, Desired, Status, public_status

LEASE_S = 30.0
SPEC = PPOSpec.model_validate_json(
    """{"name": "n", "metadata": {"team": "rl"}, "limits": {"max_attempts": 2},
        "config": {"model": {"name": "m"}, "data": {"prompts": ["a", "b\\u0000"]},
                   "reward": {"kind": "length", "target_tokens": 3}, "optimization": {"steps": 5}}}"""
)
FAILURE = JobFailure(code="nan_loss", detail="NaN\x00", hint="h", step=3, log_tail=("a", "b"))


def create(store: SqlStore, job_id: str = "job_1", **options: Any) -> Job:
    return store.create_job(job_id, "me", SPEC, {"model": {"path": "/m", "base": None}}, **options).job


def claim(store: SqlStore, job_id: str = "job_1") -> Job:
    job = store.claim(job_id, store.get_job(job_id).epoch, worker="w", lease_s=LEASE_S)
    assert job is not None
    return job


def set_row(store: SqlStore, job_id: str, **values: Any) -> None:
    with store.writing() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))


def in_state(store: SqlStore, name: str) -> Job:
    """A job in a public state, reached through the port."""
    create(store)
    if name in ("queued", "cancelled"):
        return store.get_job("job_1") if name == "queued" else store.request("job_1", Action.CANCEL)
    job = claim(store)
    if name == "cancelling":
        return store.request("job_1", Action.CANCEL)
    if name in ("pausing", "paused"):
        store.request("job_1", Action.PAUSE)
    if name == "paused":
        store.hand_back("job_1", job.attempt, reason="r")
    if name in ("succeeded", "failed"):
        store.finish("job_1", job.attempt, Status(name))
    return store.get_job("job_1")


def reap_later(store: SqlStore, clock: Any) -> Any:
    clock.time += LEASE_S + 1
    return store.reap()


SAMPLE = Sample(step=1, kind="rollout", index=0, prompt="p\x00", completion="c", data={"reward": 1.0})
CHECKPOINT = {"name": "step-1", "step": 1, "path": "/p", "sha256": "0" * 64, "size": 2**40}
SHARD = NewShard(
    index=0, items=3, path="job_1/1/s", sha256="0" * 64, bytes=2**40, cursor={"bytes": 7, "a": "\x00"}
)
OWNER_WRITES: dict[str, Callable[[SqlStore, Job], Any]] = {
    "heartbeat": lambda s, j: s.heartbeat(j.id, j.attempt, lease_s=LEASE_S),
    "set_phase": lambda s, j: s.set_phase(j.id, j.attempt, "rollout"),
    "record_step": lambda s, j: s.record_step(
        j.id,
        j.attempt,
        step=1,
        metrics={"a": 0.1},
        timings={},
        samples=[SAMPLE],
        events=[NewEvent(type="t", message="m")],
    ),
    "record_samples": lambda s, j: s.record_samples(j.id, j.attempt, [SAMPLE]),
    "add_event": lambda s, j: s.add_event(j.id, j.attempt, NewEvent(type="t", message="m")),
    "record_checkpoint": lambda s, j: s.record_checkpoint(j.id, j.attempt, **CHECKPOINT),
    "record_shard": lambda s, j: s.record_shard(j.id, j.attempt, SHARD, metrics={"a": 0.1}, timings={}),
    "drop_checkpoints": lambda s, j: s.drop_checkpoints(j.id, j.attempt, ["step-1"]),
    "finish succeeded": lambda s, j: s.finish(j.id, j.attempt, Status.SUCCEEDED),
    "finish failed": lambda s, j: s.finish(j.id, j.attempt, Status.FAILED, error=FAILURE),
    "finish cancelled": lambda s, j: s.finish(j.id, j.attempt, Status.CANCELLED),
    "hand_back": lambda s, j: s.hand_back(j.id, j.attempt, reason="r"),
    "hand_back crashed": lambda s, j: s.hand_back(j.id, j.attempt, reason="r", crashed=True),
}
STATES = ["queued", "running", "pausing", "cancelling", "paused", "succeeded", "failed", "cancelled"]

# action -> state -> the public state afterwards; a state that is not named refuses.
AFTER_OWNER_WRITE: dict[str, dict[str, str]] = {
    **{name: {s: s for s in ("running", "pausing", "cancelling")} for name in list(OWNER_WRITES)[:8]},
    **{
        f"finish {end}": dict.fromkeys(("running", "pausing", "cancelling"), end)
        for end in ("succeeded", "failed", "cancelled")
    },
    "hand_back": {"running": "queued", "pausing": "paused", "cancelling": "cancelled"},
    "hand_back crashed": {"running": "queued", "pausing": "paused", "cancelling": "cancelled"},
}


def assert_gap_free(store: SqlStore, job_id: str = "job_1") -> None:
    seqs = [event.seq for event in store.list_events(job_id, limit=10_000)]
    assert seqs == list(range(1, len(seqs) + 1))
    assert seqs, "a job has at least its first event"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", OWNER_WRITES)
def test_owner_writes_move_the_row_as_the_table_says_or_are_refused_whole(
    store: SqlStore, state: str, action: str
) -> None:
    before = in_state(store, state)
    events = store.list_events("job_1")
    expected = AFTER_OWNER_WRITE[action].get(state)
    if expected is None:
        with pytest.raises(LeaseLost):
            OWNER_WRITES[action](store, before)
        assert store.get_job("job_1") == before
        assert store.list_events("job_1") == events
        assert not store.list_metrics("job_1")
        assert not store.list_samples("job_1")
        assert not store.list_checkpoints("job_1")
        return
    OWNER_WRITES[action](store, before)
    after = store.get_job("job_1")
    assert after.public_status == expected
    assert after.version == before.version + 1
    assert after.done == (after.finished_at is not None)
    if after.status is not Status.RUNNING:
        assert (after.worker, after.lease_until, after.phase) == (None, None, None)
        assert before.status in SOURCES[after.status]
        assert store.list_events("job_1")[-1].type == {"queued": "job.requeued"}.get(
            expected, f"job.{expected}"
        )
    assert_gap_free(store)


@pytest.mark.parametrize("action", OWNER_WRITES)
def test_the_fence_stops_an_owner_that_was_replaced(store: SqlStore, clock: Any, action: str) -> None:
    first = in_state(store, "running")
    reap_later(store, clock)
    second = claim(store)
    assert second.attempt == first.attempt + 1
    with pytest.raises(LeaseLost):
        OWNER_WRITES[action](store, first)
    assert store.get_job("job_1") == second
    OWNER_WRITES[action](store, second)


@pytest.mark.parametrize("action", OWNER_WRITES)
def test_owner_writes_to_a_job_that_never_was_are_refused(store: SqlStore, action: str) -> None:
    with pytest.raises(LeaseLost):
        OWNER_WRITES[action](store, replace(in_state(store, "running"), id="job_2"))


@pytest.mark.parametrize("state", STATES)
def test_claim_takes_queued_jobs_of_its_epoch_only(store: SqlStore, state: str) -> None:
    before = in_state(store, state)
    assert store.claim("job_1", before.epoch + 1, worker="w", lease_s=LEASE_S) is None
    assert store.claim("job_1", before.epoch - 1, worker="w", lease_s=LEASE_S) is None
    assert store.get_job("job_1") == before
    claimed = store.claim("job_1", before.epoch, worker="w", lease_s=LEASE_S)
    if state != "queued":
        assert claimed is None
        assert store.get_job("job_1") == before
        return
    assert claimed == store.get_job("job_1")
    assert (claimed.status, claimed.attempt, claimed.worker) == (Status.RUNNING, 1, "w")
    assert claimed.lease_until == claimed.started_at + LEASE_S  # type: ignore[operator]


# action -> public state before -> after, event; a repeat changes nothing; a state that is not named refuses.
AFTER_REQUEST: dict[str, dict[str, tuple[str, str | None]]] = {
    "pause": {
        "queued": ("paused", "job.paused"),
        "running": ("pausing", "job.pausing"),
        "pausing": ("pausing", None),
        "paused": ("paused", None),
    },
    "resume": {
        "paused": ("queued", "job.resumed"),
        "pausing": ("running", "job.pause_withdrawn"),
        "queued": ("queued", None),
        "running": ("running", None),
    },
    "cancel": {
        "queued": ("cancelled", "job.cancelled"),
        "paused": ("cancelled", "job.cancelled"),
        "running": ("cancelling", "job.cancelling"),
        "pausing": ("cancelling", "job.cancelling"),
        "cancelling": ("cancelling", None),
        "cancelled": ("cancelled", None),
    },
}


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("desired", Desired)
@pytest.mark.parametrize("status", Status)
def test_requests_move_the_row_as_the_table_says_or_are_refused_whole(
    store: SqlStore, clock: Any, status: Status, desired: Desired, action: Action
) -> None:
    """`desired` matters only while a job runs: what an earlier run left there decides nothing later."""
    name = public_status(status, desired)
    in_state(store, name)
    set_row(store, "job_1", desired=desired)
    before, events = store.get_job("job_1"), store.list_events("job_1")
    clock.time += 1
    if name not in AFTER_REQUEST[action]:
        with pytest.raises(IllegalTransition, match=f"{action} is not possible: job_1 is {name}"):
            store.request("job_1", action)
        assert store.get_job("job_1") == before
        assert store.list_events("job_1") == events
        return
    state, event = AFTER_REQUEST[action][name]
    after = store.request("job_1", action)
    assert after == store.get_job("job_1")
    assert after.public_status == state
    assert [item.type for item in store.list_events("job_1")[len(events) :]] == [event] * (event is not None)
    if event is None:
        assert after == before
        return
    moved = {"status", "desired", "version", "updated_at"}
    moved |= {"epoch", "queued_at"} if event == "job.resumed" else set()
    moved |= {"finished_at"} if after.done else set()
    assert {field: vars(after)[field] for field in vars(after) if field not in moved} == {
        field: vars(before)[field] for field in vars(before) if field not in moved
    }
    assert after.version == before.version + 1
    assert after.epoch == before.epoch + (event == "job.resumed")
    assert after.status is before.status or before.status in SOURCES[after.status]
    assert_gap_free(store)


def test_a_resumed_job_starts_anew_and_messages_of_before_are_stale(store: SqlStore, clock: Any) -> None:
    create(store)
    store.mark_dispatched("job_1", 1)
    store.request("job_1", Action.PAUSE)
    assert store.claim("job_1", 1, worker="w", lease_s=LEASE_S) is None
    clock.time += 7
    resumed = store.request("job_1", Action.RESUME)
    assert (resumed.epoch, resumed.queued_at, resumed.desired) == (2, clock.time, Desired.RUN)
    assert store.claim("job_1", 1, worker="w", lease_s=LEASE_S) is None
    assert [(job.id, job.epoch) for job in store.undispatched(resend_after_s=60.0)] == [("job_1", 2)]
    running = claim(store)
    store.request("job_1", Action.PAUSE)
    store.request("job_1", Action.RESUME)
    assert store.heartbeat("job_1", running.attempt, lease_s=LEASE_S).desired is Desired.RUN
    store.request("job_1", Action.PAUSE)
    assert store.hand_back("job_1", running.attempt, reason="r", crashed=True) is Status.PAUSED
    store.request("job_1", Action.RESUME)
    again = claim(store)
    assert (again.crash_count, again.attempt, again.started_at) == (1, 2, running.started_at)


AFTER_REAP = {"running": "queued", "pausing": "paused", "cancelling": "cancelled"}


@pytest.mark.parametrize("lease", ["live", "expired", "null"])
@pytest.mark.parametrize("state", STATES)
def test_reap(store: SqlStore, clock: Any, state: str, lease: str) -> None:
    before = in_state(store, state)
    if lease == "null":
        set_row(store, "job_1", lease_until=None)
        before = store.get_job("job_1")
    clock.time += LEASE_S + (0.5 if lease == "expired" else -0.5)
    reaped = store.reap()
    after = store.get_job("job_1")
    if state not in AFTER_REAP or lease == "live":
        assert reaped == []
        assert after == before
        return
    assert after.public_status == AFTER_REAP[state]
    assert [(r.job_id, r.attempt, r.status) for r in reaped] == [("job_1", 1, after.status)]
    assert after.crash_count == 1
    assert after.epoch == before.epoch + (state == "running")
    assert after.desired == (Desired.CANCEL if state == "cancelling" else Desired.RUN)
    assert store.reap() == []
    assert_gap_free(store)


def test_a_crash_loop_ends_and_a_checkpoint_forgives(store: SqlStore) -> None:
    create(store)  # max_attempts = 2
    job = claim(store)
    assert store.hand_back("job_1", job.attempt, reason="r", crashed=True) is Status.QUEUED
    job = claim(store)
    assert job.crash_count == 1
    store.record_checkpoint("job_1", job.attempt, **CHECKPOINT)  # type: ignore[arg-type]
    assert store.hand_back("job_1", job.attempt, reason="r", crashed=True) is Status.QUEUED
    assert store.hand_back("job_1", claim(store).attempt, reason="shutdown") is Status.QUEUED
    assert store.hand_back("job_1", claim(store).attempt, reason="r", crashed=True) is Status.FAILED
    ended = store.get_job("job_1")
    assert ended.done
    assert ended.error is not None
    assert ended.error.code == "worker_lost"
    assert (ended.crash_count, ended.attempt, ended.epoch) == (2, 4, 4)


def test_saving_a_step_again_is_no_progress(store: SqlStore) -> None:
    create(store)  # max_attempts = 2
    for ends in (Status.QUEUED, Status.FAILED):
        attempt = claim(store).attempt
        store.record_checkpoint("job_1", attempt, **CHECKPOINT)  # type: ignore[arg-type]
        store.drop_checkpoints("job_1", attempt, ["step-1"])  # it turned out to be corrupt
        assert store.hand_back("job_1", attempt, reason="r", crashed=True) is ends


def test_a_pause_does_not_keep_a_job_that_may_not_be_tried_again(store: SqlStore) -> None:
    create(store)  # max_attempts = 2
    for asked, ends in ((Action.RESUME, Status.QUEUED), (Action.PAUSE, Status.FAILED)):
        attempt = claim(store).attempt
        store.request("job_1", asked)
        assert store.hand_back("job_1", attempt, reason="r", crashed=True) is ends
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "worker_lost"


def test_a_job_that_goes_on_from_a_checkpoint_begins_at_its_step(store: SqlStore) -> None:
    create(store, "job_0")
    save = {**CHECKPOINT, "name": "step-3", "step": 3}
    store.record_checkpoint("job_0", claim(store, "job_0").attempt, **save)  # type: ignore[arg-type]
    start = {"path": "/p", "sha256": "0" * 64, "step": 3, "job_id": "job_0", "name": "step-3"}
    job = store.create_job("job_1", "me", SPEC, {"resume_from": start}).job
    assert (job.step, job.first_step) == (3, 3)
    attempt = claim(store).attempt
    store.hand_back("job_1", attempt, reason="r", crashed=True)
    store.record_checkpoint("job_1", claim(store).attempt, **{**CHECKPOINT, "step": 3})  # type: ignore[arg-type]
    assert store.get_job("job_1").crash_count == 1, "the step it began with is no progress"
    store.record_checkpoint("job_1", attempt + 1, **{**CHECKPOINT, "step": 4})  # type: ignore[arg-type]
    assert store.get_job("job_1").crash_count == 0
    assert create(store, "job_2").first_step == 0


def test_the_reaper_fails_a_job_whose_workers_keep_dying(store: SqlStore, clock: Any) -> None:
    create(store)
    claim(store)
    assert [r.status for r in reap_later(store, clock)] == [Status.QUEUED]
    claim(store)
    assert [r.status for r in reap_later(store, clock)] == [Status.FAILED]
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "worker_lost"


def test_everything_written_is_read_back_equal(store: SqlStore, clock: Any) -> None:
    created = create(store)
    assert created == store.get_job("job_1")
    assert created.spec == SPEC
    assert created.resolved == {"model": {"path": "/m", "base": None}}
    attempt = claim(store).attempt
    samples = [replace(SAMPLE, index=i, completion="é\x00" * i, data={"kl": 0.1 + 0.2}) for i in range(3)]
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
    by_status = {status: [job.id for job in store.list_jobs(owner="me", status=status)] for status in STATES}
    assert {status: found for status, found in by_status.items() if found} == {
        "queued": ["job_4", "job_2", "job_0"],
        "running": ["job_1"],
        "cancelling": ["job_3"],
    }
    with pytest.raises(ValueError, match="nonsense"):
        store.list_jobs(status="nonsense")


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


def together(work: Callable[[int], Any], threads: int) -> list[Any]:
    """Run `work(0) … work(threads − 1)` at once; exceptions are results."""
    barrier = threading.Barrier(threads)

    def start(n: int) -> Any:
        barrier.wait()
        try:
            return work(n)
        except LeaseLost as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(start, range(threads)))


def test_32_creates_with_one_key_make_one_job(store: SqlStore) -> None:
    made = together(
        lambda n: store.create_job(f"job_{n}", "me", SPEC, {}, idempotency_key="k", request_sha256="a"), 32
    )
    assert sum(not created.replayed for created in made) == 1
    assert len({created.job.id for created in made}) == 1
    assert len(store.list_jobs(limit=100)) == 1


def test_8_claims_have_one_winner(store: SqlStore) -> None:
    create(store)
    won = together(lambda n: store.claim("job_1", 1, worker=f"w{n}", lease_s=LEASE_S), 8)
    (winner,) = [job for job in won if job is not None]
    assert store.get_job("job_1") == winner


def test_events_of_8_writers_have_no_gap(store: SqlStore) -> None:
    create(store)
    attempt = claim(store).attempt

    def write(n: int) -> None:
        for i in range(20):
            store.add_event("job_1", attempt, NewEvent(type="t", message=f"{n}.{i}"))

    together(write, 8)
    assert_gap_free(store)
    messages = [event.message for event in store.list_events("job_1", limit=1000)]
    for n in range(8):  # nothing lost, and each writer's order is kept
        assert [m for m in messages if m.startswith(f"{n}.")] == [f"{n}.{i}" for i in range(20)]


def test_two_reapers_and_a_finishing_owner_end_in_one_of_the_two_ways(store: SqlStore, clock: Any) -> None:
    for n in range(20):
        create(store, f"job_{n:02}")
    attempts = {job.id: claim(store, job.id).attempt for job in store.list_jobs(limit=100)}
    clock.time += LEASE_S + 1

    def act(n: int) -> Any:
        if n < 2:
            return store.reap()
        finished = []
        for job_id, attempt in attempts.items():
            try:
                store.finish(job_id, attempt, Status.SUCCEEDED)
                finished.append(job_id)
            except LeaseLost:
                pass
        return finished

    one, two, finished = together(act, 3)
    reaped = [item.job_id for item in one + two]
    assert sorted(reaped + finished) == sorted(attempts), "each job exactly once"
    for job in store.list_jobs(limit=100):
        assert job.status is (Status.SUCCEEDED if job.id in finished else Status.QUEUED)
        assert_gap_free(store, job.id)


def test_a_heartbeat_races_the_reaper(store: SqlStore, clock: Any) -> None:
    for n in range(10):
        job_id = f"job_{n}"
        create(store, job_id)
        attempt = claim(store, job_id).attempt
        clock.time += LEASE_S + 1
        lost, reaped = together(
            lambda k, job_id=job_id, attempt=attempt: (
                store.reap() if k else store.heartbeat(job_id, attempt, lease_s=LEASE_S)
            ),
            2,
        )
        taken = job_id in [item.job_id for item in reaped]
        assert isinstance(lost, LeaseLost) == taken
        assert store.get_job(job_id).status is (Status.QUEUED if taken else Status.RUNNING)


def test_terminal_means_no_way_out() -> None:
    assert not any(sources & TERMINAL for sources in SOURCES.values())


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


def test_keys(store: SqlStore) -> None:
    store.create_key("id", "hash", "name")
    assert store.key_secret_sha256("id") == "hash"
    assert store.key_secret_sha256("other") is None
    with store.writing() as connection:
        connection.execute(update(api_keys).values(revoked_at=1.0))
    assert store.key_secret_sha256("id") is None


def test_readers_pass_a_writer_that_hangs_in_its_transaction(store: SqlStore) -> None:
    create(store)
    with store.writing() as connection:
        connection.execute(update(jobs).values(phase="unfinished"))
        assert store.get_job("job_1").phase is None
        assert [job.phase for job in store.list_jobs()] == [None]


def test_a_writer_does_not_wait_for_ever(store: SqlStore) -> None:
    create(store)
    hasty = SqlStore(store.engine.url.render_as_string(hide_password=False), lock_wait_s=0.1)
    with store.writing() as connection:
        connection.execute(update(jobs).values(phase="unfinished"))
        with pytest.raises(StoreUnavailable):
            hasty.request("job_1", Action.CANCEL)
    assert hasty.request("job_1", Action.CANCEL).done
    hasty.close()
