"""jobs.store.Store, on SQLite and on PostgreSQL: many at once, and a writer that hangs."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import update

from jobs.errors import LeaseLost, QuotaExceeded, StoreUnavailable
from jobs.schema import jobs
from jobs.spec import NewEvent
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from tests.contracts.store_jobs import LEASE_S, SPEC, assert_gap_free, claim, create


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


def test_creates_at_once_do_not_exceed_the_owners_quota(store: SqlStore) -> None:
    create(store, "job_paused")
    store.request("job_paused", Action.PAUSE)  # counts: else pausing would make room for ever more

    def ask(n: int) -> bool:
        try:
            store.create_job(f"job_{n}", "me", SPEC, {}, queued_limit=6)
        except QuotaExceeded:
            return False
        return True

    assert sum(together(ask, 24)) == 5
    assert store.create_job("job_of_another", "you", SPEC, {}, queued_limit=6).job.owner == "you"
    queued = next(job.id for job in store.list_jobs(owner="me") if job.status is Status.QUEUED)
    claimed = claim(store, queued)  # what runs no longer waits
    assert claimed.public_status == "running"
    assert ask(24)
    assert not ask(25)


def test_a_create_over_the_quota_leaves_its_idempotency_key_free(store: SqlStore) -> None:
    create(store, queued_limit=1)
    repeat = {"idempotency_key": "k", "request_sha256": "a", "queued_limit": 1}
    with pytest.raises(QuotaExceeded):
        create(store, "job_2", **repeat)
    store.request("job_1", Action.CANCEL)
    assert create(store, "job_2", **repeat).id == "job_2"
    assert (
        create(store, "job_3", **repeat).id == "job_2"
    )  # a repeat makes nothing, so it is no quota's matter


def test_an_owner_with_a_limit_has_so_many_jobs_sent_or_running(store: SqlStore, clock: Any) -> None:
    for n, priority in enumerate([1, 1, 9, 1]):
        spec = SPEC.model_copy(update={"priority": priority})
        store.create_job(f"job_{n}", "me", spec, {})
        store.create_job(f"other_{n}", f"owner_{n}", SPEC, {})
        clock.time += 1

    def sendable() -> list[str]:
        found = store.undispatched(resend_after_s=60, running_limit=2)
        return [job.id for job in found if job.owner == "me"]

    assert sendable() == ["job_2", "job_0"]  # the highest priority, and of the others the oldest
    assert len(store.undispatched(resend_after_s=60, running_limit=2)) == 2 + 4  # every other owner's one
    assert len(store.undispatched(resend_after_s=60)) == 8
    store.mark_dispatched("job_2", 1)
    assert sendable() == ["job_0"]
    store.mark_dispatched("job_0", 1)
    assert sendable() == []
    running = claim(store, "job_2")
    assert sendable() == []
    clock.time += 61  # a message that nobody took is sent again: it holds its place
    assert sendable() == ["job_0"]
    store.finish("job_2", running.attempt, Status.SUCCEEDED)
    assert sendable() == ["job_0", "job_1"]
