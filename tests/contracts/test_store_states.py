"""jobs.store.Store, on SQLite and on PostgreSQL: the state table, the fence, the reaper."""

from dataclasses import replace
from typing import Any

import pytest

from jobs.errors import IllegalTransition, LeaseLost
from jobs.sql_store import SqlStore
from jobs.states import SOURCES, TERMINAL, Action, Desired, Status, public_status
from tests.contracts.store_jobs import (
    CHECKPOINT,
    LEASE_S,
    OWNER_WRITES,
    SPEC,
    STATES,
    assert_gap_free,
    claim,
    create,
    in_state,
    reap_later,
    set_row,
)

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
    after = store.request("job_1", action, reason="why\x00")
    assert after == store.get_job("job_1")
    assert after.public_status == state
    assert [item.type for item in store.list_events("job_1")[len(events) :]] == [event] * (event is not None)
    if event is None:
        assert after == before
        return
    assert (after.reason, store.list_events("job_1")[-1].data) == ("why\x00", {"reason": "why\x00"})
    assert after.cancel_requested_at == (clock.time if action is Action.CANCEL else None)
    moved = {"status", "desired", "version", "updated_at", "reason", "cancel_requested_at"}
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


def test_terminal_means_no_way_out() -> None:
    assert not any(sources & TERMINAL for sources in SOURCES.values())
