"""jobs.store.Store, on SQLite and on PostgreSQL: lists by filter, and what a client changes of a job."""

from itertools import product
from typing import Any

import pytest

from jobs.errors import (
    IllegalTransition,
    JobNotFound,
    TooMuchMetadata,
    VersionConflict,
)
from jobs.spec import JOB_SPEC
from jobs.sql_store import SqlStore
from jobs.states import Action
from jobs.store_jobs import JobChange, JobFilter
from tests.contracts.store_jobs import SPEC, STATES, claim, create, in_state

ODD = ("", "\x00", "'\"", "%_", "é\u2028", "\U0001f600" * 8, "[a]", "a" * 64)


def labelled(store: SqlStore, job_id: str, owner: str = "me", **pairs: str) -> None:
    spec = SPEC.model_copy(update={"metadata": pairs})
    store.create_job(job_id, owner, spec, {})


def ids(store: SqlStore, **options: Any) -> list[str]:
    return [job.id for job in store.list_jobs(limit=100, **options)]


# -- lists ------------------------------------------------------------------------------------


def test_metadata_is_found_whatever_it_holds(store: SqlStore) -> None:
    pairs = [(key or "k", value) for key, value in product(ODD, ODD)]
    for n, (key, value) in enumerate(pairs):
        labelled(store, f"job_{n:02}", **{key: value})
    for key, value in set(pairs):
        expected = [f"job_{n:02}" for n, pair in enumerate(pairs) if pair == (key, value)]
        assert ids(store, where=JobFilter(metadata={key: value}), oldest_first=True) == expected


def test_every_filter_must_fit(store: SqlStore, clock: Any) -> None:
    labelled(store, "job_1", team="rl", run="1")
    clock.time += 10
    labelled(store, "job_2", team="rl", run="2")
    labelled(store, "job_3", owner="you", team="rl", run="1")
    score = JOB_SPEC.validate_python(
        {"type": "score", "metadata": {"team": "rl"}, "config": {"items": ["a"]}}
    )
    store.create_job("job_4", "me", score, {})
    store.request("job_2", Action.CANCEL)
    for where, expected in (
        (JobFilter(metadata={"team": "rl"}), ["job_4", "job_2", "job_1"]),
        (JobFilter(metadata={"team": "rl", "run": "1"}), ["job_1"]),
        (JobFilter(metadata={"team": "rl", "run": "3"}), []),
        (JobFilter(metadata={"team": "r"}), []),
        (JobFilter(metadata={"rl": "team"}), []),
        (JobFilter(type="score"), ["job_4"]),
        (JobFilter(type="ppo", statuses=["queued"]), ["job_1"]),
        (JobFilter(statuses=["queued", "cancelled"]), ["job_4", "job_2", "job_1"]),
        (JobFilter(created_from=clock.time), ["job_4", "job_2"]),
        (JobFilter(created_before=clock.time), ["job_1"]),
        (JobFilter(created_from=clock.time, statuses=["cancelled"], metadata={"run": "2"}), ["job_2"]),
    ):
        assert ids(store, owner="me", where=where) == expected
        assert ids(store, owner="me", where=where, oldest_first=True) == expected[::-1]
        assert store.count_jobs(owner="me", where=where) == len(expected)
    assert store.count_jobs() == 4


def test_a_cursor_need_not_be_a_job_of_the_list(store: SqlStore) -> None:
    for n in range(4):
        create(store, f"job_{n}")
    assert ids(store, after="job_2") == ["job_1", "job_0"]
    assert ids(store, after="job_2", oldest_first=True) == ["job_3"]
    assert ids(store, after="job_zzz", oldest_first=True) == []


def test_the_place_in_the_queue_is_the_dispatcher_s_order(store: SqlStore, clock: Any) -> None:
    for n, priority in enumerate((5, 5, 9, 0)):
        store.create_job(f"job_{n}", "me", SPEC.model_copy(update={"priority": priority}), {})
        clock.time += 1
    store.create_job("job_running", "me", SPEC, {})
    claim(store, "job_running")
    waiting = [job.id for job in store.undispatched(resend_after_s=60)]
    assert waiting == ["job_2", "job_0", "job_1", "job_3"]
    places = [store.queue_place(store.get_job(job_id)) for job_id in waiting]
    assert [place.position for place in places] == [1, 2, 3, 4]
    assert places[1].waited_s == pytest.approx(4)
    assert not places[0].sent
    store.mark_dispatched("job_2", 1)
    assert store.queue_place(store.get_job("job_2")).sent


# -- changes ----------------------------------------------------------------------------------


def test_a_change_sets_what_it_names_and_grows_the_version_once(store: SqlStore) -> None:
    before = create(store)
    changed = store.change_job(
        "job_1", JobChange(rename=True, name="é\x00", metadata={"run": "2", "team": None})
    )
    assert (changed.name, changed.metadata, changed.priority) == ("é\x00", {"run": "2"}, before.priority)
    assert changed.version == before.version + 1
    assert changed.spec == before.spec, "the request stays as it was"
    assert store.change_job("job_1", JobChange(rename=True, name="é\x00", metadata={"run": "2"})) == changed
    assert ids(store, where=JobFilter(metadata={"run": "2"})) == ["job_1"]
    assert ids(store, where=JobFilter(metadata={"team": "rl"})) == []
    bare = store.change_job("job_1", JobChange(rename=True, metadata=None))
    assert (bare.name, bare.metadata) == (None, {})


def test_metadata_has_room_for_sixteen_pairs(store: SqlStore) -> None:
    create(store)  # with one
    store.change_job("job_1", JobChange(metadata={f"k{n}": "" for n in range(15)}))
    with pytest.raises(TooMuchMetadata, match="17"):
        store.change_job("job_1", JobChange(metadata={"one": "more"}))
    assert len(store.change_job("job_1", JobChange(metadata={"one": "more", "team": None})).metadata) == 16


def test_a_change_for_another_version_changes_nothing(store: SqlStore) -> None:
    create(store)
    for versions in ({2}, {0, 7}, set[int]()):
        with pytest.raises(VersionConflict) as conflict:
            store.change_job("job_1", JobChange(rename=True, name="x", if_versions=frozenset(versions)))
        assert conflict.value.version == 1
    assert (
        store.change_job("job_1", JobChange(rename=True, name="x", if_versions=frozenset({1, 7}))).version
        == 2
    )


@pytest.mark.parametrize("state", STATES)
def test_a_priority_counts_until_the_job_has_ended(store: SqlStore, state: str) -> None:
    before = in_state(store, state)
    change = JobChange(priority=9, rename=True, name="x")
    if before.done:
        with pytest.raises(IllegalTransition, match=f"is {state}"):
            store.change_job("job_1", change)
        assert store.get_job("job_1") == before, "nothing of it"
        assert store.change_job("job_1", JobChange(priority=5, rename=True, name="x")).name == "x", (
            "its own priority"
        )
        return
    after = store.change_job("job_1", change)
    assert (after.priority, after.name, after.public_status) == (9, "x", state)
    assert after.epoch == before.epoch + (state == "queued")


def test_a_message_with_the_old_priority_is_stale(store: SqlStore) -> None:
    create(store, "job_1")
    create(store, "job_2")
    for job_id in ("job_1", "job_2"):
        store.mark_dispatched(job_id, 1)
    store.change_job("job_2", JobChange(priority=9))
    assert [(job.id, job.epoch) for job in store.undispatched(resend_after_s=60)] == [("job_2", 2)]
    assert store.claim("job_2", 1, worker="w", lease_s=30) is None
    assert store.claim("job_2", 2, worker="w", lease_s=30) is not None


def test_another_owner_s_job_is_not_there(store: SqlStore) -> None:
    create(store)
    for job_id, owner in (("job_1", "you"), ("job_2", "me"), ("job_1\x00", None)):
        with pytest.raises(JobNotFound):
            store.change_job(job_id, JobChange(rename=True), owner)
        with pytest.raises(JobNotFound):
            store.delete_job(job_id, owner)
