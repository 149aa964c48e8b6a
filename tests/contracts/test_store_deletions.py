"""jobs.store.Store, on SQLite and on PostgreSQL: jobs are deleted, and keys have had their time."""

import threading
from typing import Any

import pytest
from sqlalchemy import func, select

from jobs.errors import (
    CheckpointGone,
    IdempotencyInProgress,
    IllegalTransition,
    JobDeleted,
    JobInUse,
    JobNotFound,
)
from jobs.schema import idempotency_keys, metadata
from jobs.schema_jobs import deleted_jobs
from jobs.spec import JOB_SPEC, PPOSpec
from jobs.sql_idempotency import KeyUse
from jobs.sql_store import SqlStore
from jobs.states import TERMINAL, Action
from jobs.store_jobs import KEY_LIFE_S
from tests.contracts.store_jobs import CHECKPOINT, OWNER_WRITES, SPEC, STATES, claim, create, in_state

# -- deletion ---------------------------------------------------------------------------------


def ids(store: SqlStore) -> list[str]:
    return [job.id for job in store.list_jobs()]


def rows(store: SqlStore) -> dict[str, int]:
    with store.reading() as connection:
        counted = {
            name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in metadata.tables.items()
        }
    return {name: count for name, count in counted.items() if count}


@pytest.mark.parametrize("state", STATES)
def test_only_a_job_that_has_ended_can_be_deleted(store: SqlStore, state: str) -> None:
    in_state(store, state)
    if state not in TERMINAL:
        with pytest.raises(IllegalTransition, match=f"is {state}"):
            store.delete_job("job_1")
        return
    store.delete_job("job_1", "me")
    assert rows(store) == {"deleted_jobs": 1}
    assert store.deleted_jobs() == ["job_1"]
    with pytest.raises(JobNotFound):
        store.delete_job("job_1", "me")


def test_all_that_hangs_on_a_job_goes_with_it(store: SqlStore) -> None:
    create(store)
    job = claim(store)
    for name in ("record_step", "record_checkpoint", "record_shard", "finish failed"):
        OWNER_WRITES[name](store, job)
    create(store, "job_2", idempotency_key="k", request_sha256="a")
    before = rows(store)
    assert {"job_metrics", "job_samples", "job_events", "job_checkpoints", "job_shards"} <= set(before)
    store.delete_job("job_1")
    assert rows(store) == {
        "jobs": 1,
        "job_events": 1,
        "job_labels": 1,
        "idempotency_keys": 1,
        "deleted_jobs": 1,
    }
    for write in OWNER_WRITES.values():
        with pytest.raises(Exception, match="job_1") as lost:
            write(store, job)
        assert type(lost.value).__name__ == "LeaseLost", "a process that was late changes nothing"


def continued(store: SqlStore, resolved: dict[str, Any], kind: str = "ppo") -> None:
    """job_1 has ended with a checkpoint; job_2 needs it."""
    job = create(store) and claim(store)
    store.record_checkpoint("job_1", job.attempt, **CHECKPOINT)  # type: ignore[arg-type]
    OWNER_WRITES["finish succeeded"](store, job)
    score = {"type": "score", "config": {"items": ["a"]}}
    spec = SPEC if kind == "ppo" else JOB_SPEC.validate_python(score)
    assert isinstance(spec, PPOSpec) == (kind == "ppo")
    store.create_job("job_2", "me", spec, resolved)


SAVED = {"job_id": "job_1", "name": "step-1", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("resolved", "kind", "for_good"),
    [
        ({"resume_from": SAVED | {"path": "/p", "step": 1}}, "ppo", False),
        ({"checkpoints": [SAVED]}, "score", False),
        ({"checkpoints": [SAVED]}, "ppo", True),  # adapters stand on their base
    ],
    ids=["resumed", "scored", "trained"],
)
def test_a_job_whose_checkpoint_another_needs_stays(
    store: SqlStore, resolved: dict[str, Any], kind: str, for_good: bool
) -> None:
    continued(store, resolved, kind)
    for user_has_ended in (False, True):
        if user_has_ended:
            store.request("job_2", Action.CANCEL)
        if user_has_ended and not for_good:
            break
        with pytest.raises(JobInUse) as refused:
            store.delete_job("job_1")
        assert refused.value.users == ["job_2"]
    if for_good:
        store.delete_job("job_2")
    store.delete_job("job_1")


def test_of_a_deletion_and_a_job_that_needs_it_one_wins(store: SqlStore) -> None:
    """At the same time: the checkpoint is never gone while a job needs it."""
    for _ in range(6):
        continued(store, {})
        barrier, ended = threading.Barrier(2), []

        def delete(barrier: threading.Barrier = barrier, ended: list[str] = ended) -> None:
            barrier.wait()
            try:
                store.delete_job("job_1")
                ended.append("deleted")
            except JobInUse:
                ended.append("kept")

        thread = threading.Thread(target=delete)
        thread.start()
        barrier.wait()
        try:
            store.create_job("job_3", "me", SPEC, {"resume_from": SAVED | {"step": 1}})
            made = True
        except CheckpointGone:
            made = False
        thread.join(30)
        assert ended == ["kept" if made else "deleted"]
        with store.writing() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())


def test_a_note_of_a_deleted_job_is_kept_as_long_as_somebody_may_write_there(
    store: SqlStore, clock: Any
) -> None:
    in_state(store, "cancelled")
    store.delete_job("job_1")
    store.forget_deleted(["job_1"], older_than_s=60)
    assert store.deleted_jobs() == ["job_1"]
    clock.time += 61
    store.forget_deleted(["job_2"], older_than_s=60)
    assert store.deleted_jobs() == ["job_1"]
    store.forget_deleted(["job_1"], older_than_s=60)
    assert store.deleted_jobs() == []


def test_a_note_never_names_a_job_that_is_there(store: SqlStore) -> None:
    create(store)
    with store.writing() as connection:
        connection.execute(deleted_jobs.insert().values(job_id="job_1", deleted_at=0.0))
    assert store.deleted_jobs() == []


# -- idempotency keys -------------------------------------------------------------------------


def test_a_key_whose_job_was_deleted_makes_no_other(store: SqlStore) -> None:
    keyed = {"idempotency_key": "k", "request_sha256": "a"}
    create(store, "job_1", **keyed)
    store.request("job_1", Action.CANCEL)
    store.delete_job("job_1")
    with pytest.raises(JobDeleted):
        create(store, "job_2", **keyed)
    with pytest.raises(JobDeleted):
        store.find_replay("me", "k", "a")
    assert ids(store) == []


def test_keys_are_forgotten_after_their_time(store: SqlStore, clock: Any) -> None:
    create(store, "job_1", idempotency_key="k", request_sha256="a")
    clock.time += KEY_LIFE_S
    create(store, "job_2", idempotency_key="l", request_sha256="a")
    assert store.forget_expired_keys() == 0
    assert create(store, "job_3", idempotency_key="k", request_sha256="a").id == "job_1"
    clock.time += 1
    assert store.forget_expired_keys() == 1
    assert create(store, "job_3", idempotency_key="k", request_sha256="b").id == "job_3"
    assert store.find_replay("me", "l", "a") is not None


def test_a_key_that_another_transaction_holds_is_in_progress(clean: SqlStore) -> None:
    if clean.engine.dialect.name == "sqlite":
        pytest.skip("one writer at a time: who waits has not begun")
    url = clean.engine.url.render_as_string(hide_password=False)
    impatient = SqlStore(url, lock_wait_s=0.05)
    with clean.engine.connect() as connection, connection.begin() as transaction:
        assert clean.claim_key(connection, KeyUse("me", "jobs_create", "k", "a"), "job_1") is None
        with pytest.raises(IdempotencyInProgress):
            create(impatient, "job_2", idempotency_key="k", request_sha256="a")
        create(impatient, "job_3", idempotency_key="l", request_sha256="a")
        transaction.rollback()
    assert create(impatient, "job_2", idempotency_key="k", request_sha256="a").id == "job_2"
    impatient.close()
    with clean.reading() as connection:
        assert connection.execute(select(func.count()).select_from(idempotency_keys)).scalar_one() == 2
