"""jobs.store.Store, on SQLite and on PostgreSQL: jobs are deleted, and keys have had their time."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, select, update

from jobs.errors import (
    CheckpointGone,
    CheckpointInUse,
    CheckpointNotFound,
    IdempotencyInProgress,
    IllegalTransition,
    JobDeleted,
    JobInUse,
    JobNotFound,
    StoreUnavailable,
)
from jobs.reaper import DAY_S, Reaper
from jobs.schema import idempotency_keys, job_checkpoints, metadata
from jobs.schema_jobs import deleted_folders
from jobs.settings import Settings
from jobs.spec import JOB_SPEC, Job, PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import TERMINAL, Action, Status
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
    assert rows(store) == {"deleted_folders": 1, "event_heads": 1}  # whose next event has a later position
    assert store.deleted_folders() == ["job_1"]
    with pytest.raises(JobNotFound):
        store.delete_job("job_1", "me")


@pytest.mark.parametrize("state", ["running", "pausing", "paused", "succeeded", "failed"])
def test_a_job_that_may_go_on_keeps_its_checkpoints(store: SqlStore, state: str) -> None:
    in_state(store, "running")
    save = store.record_checkpoint("job_1", 1, **CHECKPOINT)  # type: ignore[arg-type]
    if state.startswith("paus"):
        store.request("job_1", Action.PAUSE)
    if state == "paused":
        store.hand_back("job_1", 1, reason="r")
    if state in TERMINAL:
        store.finish("job_1", 1, Status(state))
    before = store.get_job("job_1")
    for stranger in ((save.id, "you"), ("ckpt_2", "me")):
        with pytest.raises(CheckpointNotFound):
            store.delete_checkpoint(*stranger)
    if state not in TERMINAL:
        with pytest.raises(IllegalTransition, match=f"is {state}"):
            store.delete_checkpoint(save.id, "me")
        assert store.list_checkpoints("job_1") == [save]
        return
    store.change_checkpoint(save.id, "me", pinned=True)
    store.delete_checkpoint(save.id, "me")
    assert (store.list_checkpoints("job_1"), store.deleted_folders()) == ([], [save.path])
    assert store.get_job("job_1") == before, "an ended job does not change"
    with pytest.raises(CheckpointNotFound):
        store.delete_checkpoint(save.id, "me")


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
        "event_heads": 1,
        "job_labels": 1,
        "idempotency_keys": 1,
        "deleted_folders": 1,
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
        with pytest.raises(CheckpointInUse):
            store.delete_checkpoint(store.list_checkpoints("job_1")[0].id, "me")
    if for_good:
        store.delete_job("job_2")
    store.delete_checkpoint(store.list_checkpoints("job_1")[0].id, "me")
    store.delete_job("job_1")


@pytest.mark.parametrize("what", ["job", "checkpoint"])
def test_of_a_deletion_and_a_job_that_needs_it_one_wins(store: SqlStore, what: str) -> None:
    """At the same time: the checkpoint is never gone while a job needs it."""
    for _ in range(6):
        continued(store, {})
        save = store.list_checkpoints("job_1")[0].id
        barrier, ended = threading.Barrier(2), []

        def delete(barrier: threading.Barrier = barrier, ended: list[str] = ended, save: str = save) -> None:
            barrier.wait()
            try:
                store.delete_job("job_1") if what == "job" else store.delete_checkpoint(save, "me")
                ended.append("deleted")
            except (JobInUse, CheckpointInUse):
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
    assert store.deleted_folders() == ["job_1"]
    clock.time += 61
    store.forget_deleted(["job_2"], older_than_s=60)
    assert store.deleted_folders() == ["job_1"]
    store.forget_deleted(["job_1"], older_than_s=60)
    assert store.deleted_folders() == []


def test_a_note_never_names_a_job_that_is_there(store: SqlStore) -> None:
    create(store)
    with store.writing() as connection:
        connection.execute(deleted_folders.insert().values(path="job_1", deleted_at=0.0))
    assert store.deleted_folders() == []


# -- retention --------------------------------------------------------------------------------


def test_retention_takes_what_ended_long_ago_and_nobody_needs(
    store: SqlStore, clock: Any, tmp_path: Path
) -> None:
    """job_2 trained on a checkpoint of job_1; job_3 has a pinned one; job_4 runs; job_5 ended a second later."""
    continued(store, {"checkpoints": [SAVED]})
    store.request("job_2", Action.CANCEL)
    create(store, "job_3")
    store.record_checkpoint("job_3", claim(store, "job_3").attempt, **CHECKPOINT)  # type: ignore[arg-type]
    store.request("job_3", Action.CANCEL)
    store.finish("job_3", 1, Status.CANCELLED)
    with store.writing() as connection:  # resuming pins as well, and that has an end
        connection.execute(update(job_checkpoints).values(pinned=job_checkpoints.c.job_id == "job_3"))
    create(store, "job_4")
    claim(store, "job_4")
    create(store, "job_5")
    clock.time += 1
    store.request("job_5", Action.CANCEL)
    clock.time += 3 * DAY_S

    Reaper(store, Settings(data=tmp_path)).forget()
    assert len(ids(store)) == 5, "by default nothing goes"
    reaper = Reaper(store, Settings(data=tmp_path, retention_days=3))
    reaper.forget()
    assert set(ids(store)) == {"job_1", "job_3", "job_4", "job_5"}, "what stood on it goes first"
    reaper.forget()
    assert set(ids(store)) == {"job_3", "job_4", "job_5"}
    clock.time += 1
    reaper.forget()
    assert set(ids(store)) == {"job_3", "job_4"}
    assert set(store.deleted_folders()) == {"job_1", "job_2", "job_5"}, "their folders go, too"

    with pytest.raises(JobInUse):  # pinned since the reaper looked
        store.delete_job("job_3", spare_pinned=True)
    store.delete_job("job_3")


def test_a_checkpoint_goes_when_its_time_is_over_and_nobody_needs_it(
    store: SqlStore, clock: Any, tmp_path: Path
) -> None:
    reaper = Reaper(store, Settings(data=tmp_path))

    def left() -> set[str]:
        reaper.forget()
        return {save.name for save in store.list_checkpoints("job_1")}

    in_state(store, "running")
    names = ("pinned", "needed", "late", "soon", "for ever")
    saves = {
        name: store.record_checkpoint("job_1", 1, **CHECKPOINT | {"name": name, "path": name})  # type: ignore[arg-type]
        for name in names
    }
    used = {"job_id": "job_1", "name": "needed", "sha256": saves["needed"].sha256, "step": 1}
    store.create_job("job_2", "me", SPEC, {"resume_from": used})
    with store.writing() as connection:  # resuming pins as well; here the need alone shall hold it
        connection.execute(update(job_checkpoints).values(pinned=job_checkpoints.c.name == "pinned"))
    for name in ("pinned", "needed", "soon"):
        store.change_checkpoint(saves[name].id, "me", expires_at=clock.time + 1)
    assert store.change_checkpoint(saves["late"].id, "me", expires_at=clock.time + 2).expires_at
    clock.time += 1
    assert left() == set(names), "its job may have to go on from there"
    store.finish("job_1", 1, Status.FAILED)
    assert left() == {"pinned", "needed", "late", "for ever"}
    assert store.deleted_folders() == ["soon"]
    store.change_checkpoint(saves["late"].id, "me", expires_at=None)
    clock.time += 1
    store.request("job_2", Action.CANCEL)
    assert left() == {"pinned", "late", "for ever"}
    with pytest.raises(CheckpointNotFound):
        store.change_checkpoint(saves["soon"].id, "me", expires_at=None)


def test_a_round_of_retention_is_bounded(store: SqlStore, clock: Any) -> None:
    for name in ("job_1", "job_2", "job_3"):
        create(store, name)
        store.request(name, Action.CANCEL)
        clock.time += 1
    assert store.expired_jobs(older_than_s=1.5, limit=9) == ["job_1", "job_2"]
    assert store.expired_jobs(older_than_s=0, limit=1) == ["job_1"]


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
    url = clean.engine.url.render_as_string(hide_password=False)
    holder, impatient = SqlStore(url), SqlStore(url, lock_wait_s=0.05)
    holds, fails = threading.Event(), threading.Event()

    def hang(_: Connection) -> None:
        holds.set()
        fails.wait(60)
        raise ZeroDivisionError

    def create_another() -> Job:
        """Of another owner: one owner's transactions write events one after the other, whatever their keys."""
        return impatient.create_job("job_3", "other", SPEC, {}, idempotency_key="l", request_sha256="a").job

    event.listen(holder.engine, "commit", hang)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(create, holder, "job_1", idempotency_key="k", request_sha256="a")
        try:
            assert holds.wait(60)
            with pytest.raises(IdempotencyInProgress):
                create(impatient, "job_2", idempotency_key="k", request_sha256="a")
            if clean.engine.dialect.name == "sqlite":  # one writer at a time
                with pytest.raises(StoreUnavailable):
                    create_another()
            else:
                create_another()
        finally:
            fails.set()
        with pytest.raises(ZeroDivisionError):
            first.result()
    assert create(impatient, "job_2", idempotency_key="k", request_sha256="a").id == "job_2"
    assert create_another().id == "job_3"
    holder.close()
    impatient.close()
    with clean.reading() as connection:
        assert connection.execute(select(func.count()).select_from(idempotency_keys)).scalar_one() == 2
