"""What those who follow jobs read of a store, and what it tells them by itself."""

from collections.abc import Collection

from jobs.spec import NewEvent
from jobs.sql_live import JOBS_PER_QUERY
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from jobs.store_live import JobVersion
from tests.contracts.store_jobs import LEASE_S, claim, create


def test_versions_are_those_of_the_rows(store: SqlStore) -> None:
    create(store, "job_1")
    create(store, "job_2")
    claim(store, "job_2")
    # created: version 1 with one event; claimed: one more of each
    assert store.job_versions(["job_1", "job_2", "job_3", "\x01"]) == {
        "job_1": JobVersion("me", 1, 1, Status.QUEUED),
        "job_2": JobVersion("me", 2, 2, Status.RUNNING),
    }
    assert store.job_versions([]) == {}


def test_events_of_many_jobs_come_in_one_read_each_after_its_own_place(store: SqlStore) -> None:
    count = JOBS_PER_QUERY + 3
    names = [f"job_{number:03}" for number in range(count)]
    for name in names:
        create(store, name)
    attempt = claim(store, names[-1]).attempt
    for number in range(3):
        store.add_event(names[-1], attempt, NewEvent(type="note", message=str(number)))

    found = store.events_after(dict.fromkeys(names, 0), limit=1000)
    assert [(name, event.seq) for name, event in found[: count - 1]] == [(name, 1) for name in names[:-1]]
    assert [event.seq for name, event in found if name == names[-1]] == [1, 2, 3, 4, 5]

    behind = {names[0]: 1, names[-1]: 2}
    assert [(name, event.seq) for name, event in store.events_after(behind, limit=2)] == [
        (names[-1], 3),
        (names[-1], 4),
    ]
    assert store.events_after({}, limit=5) == []


def test_a_store_tells_of_the_changes_it_has_committed_and_of_no_others(store: SqlStore) -> None:
    told: list[tuple[str, int]] = []

    def changed(job_ids: Collection[str]) -> None:
        told.extend((job_id, store.get_job(job_id).version) for job_id in job_ids)  # it is committed

    store.listen(changed)
    job = create(store)
    running = claim(store)
    store.heartbeat(job.id, running.attempt, lease_s=LEASE_S)
    store.request(job.id, Action.CANCEL)
    store.request(job.id, Action.CANCEL)  # changes nothing
    assert store.claim(job.id, job.epoch, worker="w2", lease_s=LEASE_S) is None
    store.mark_dispatched(job.id, job.epoch)
    assert told == [(job.id, version) for version in (1, 2, 3, 4)]
