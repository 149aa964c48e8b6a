"""jobs.store_files and jobs.store_workers, on SQLite and on PostgreSQL."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from jobs.errors import FileDeleted, FileGone, FileInUse, FileQuotaExceeded, IdempotencyKeyReused, NoSuchFile
from jobs.sql_files import hold_files
from jobs.sql_store import SqlStore
from jobs.states import TERMINAL, Action
from jobs.store_files import NewFile
from jobs.store_workers import WorkerCard
from tests.contracts.store_jobs import SPEC, STATES, claim, create, in_state

FILE = NewFile(id="file_1", owner="me", name="é\x00", purpose="items", bytes=2**40, lines=3, sha256="0" * 64)
PLENTY = 2**50
CARD = WorkerCard(id="h:1", host="h", queues=("cpu", "gpu.any"), device="cpu", versions={"celery": "5"})


def hold(store: SqlStore, job_id: str = "job_1") -> None:
    files = {"items_file": {"id": "file_1", "sha256": FILE.sha256}}
    store.create_job(job_id, "me", SPEC, {"files": files | {"prompts_file": files["items_file"]}})


def test_a_file_is_read_back_by_its_owner(store: SqlStore, clock: Any) -> None:
    created = store.create_file(FILE, owner_may_have=PLENTY)
    assert not created.replayed
    assert created.file.created_at == clock.time
    assert NewFile(**{k: v for k, v in vars(created.file).items() if k != "created_at"}) == FILE
    assert store.get_file("file_1") == store.get_file("file_1", "me") == created.file
    for file_id, owner in (("file_1", "other"), ("file_2", "me"), ("\x00", "me")):
        with pytest.raises(NoSuchFile):
            store.get_file(file_id, owner)
        with pytest.raises(NoSuchFile):
            store.delete_file(file_id, owner)
    store.create_file(replace(FILE, id="file_2", purpose="prompts"), owner_may_have=PLENTY)
    store.create_file(replace(FILE, id="file_3", owner="other"), owner_may_have=PLENTY)
    listed = [file.id for file in store.list_files("me")]
    assert (listed, store.file_bytes("me"), store.file_bytes("nobody")) == (["file_2", "file_1"], 2**41, 0)
    assert [file.id for file in store.list_files("me", after="file_2")] == ["file_1"]
    assert [file.id for file in store.list_files("me", purpose="prompts", limit=1)] == ["file_2"]
    store.delete_file("file_1", "me")
    assert [file.id for file in store.list_files("me")] == ["file_2"]


@pytest.mark.parametrize("state", STATES)
def test_a_file_stays_until_the_jobs_that_read_it_are_done(store: SqlStore, state: str) -> None:
    store.create_file(FILE, owner_may_have=PLENTY)
    job = in_state(store, state)
    with store.writing() as connection:
        hold_files(connection, job.id, {"files": {"items_file": {"id": "file_1"}}})
    if job.status in TERMINAL:
        store.delete_file("file_1", "me")
        assert store.get_job(job.id) == job
    else:
        with pytest.raises(FileInUse, match="job_1"):
            store.delete_file("file_1", "me")


def test_a_job_cannot_name_a_file_that_has_gone(store: SqlStore) -> None:
    store.create_file(FILE, owner_may_have=PLENTY)
    hold(store)
    store.request("job_1", Action.CANCEL)
    store.delete_file("file_1", "me")
    with pytest.raises(FileGone):
        hold(store, "job_2")
    assert [job.id for job in store.list_jobs()] == ["job_1"], "nothing of the other is there"


def test_a_job_and_a_deletion_at_once_have_one_order(store: SqlStore) -> None:
    def create_job(n: int) -> bool:
        try:
            hold(store, f"job_{n}")
        except FileGone:
            return False
        return True

    def delete(_: int) -> bool:
        try:
            store.delete_file("file_1", "me")
        except (FileInUse, NoSuchFile):
            return False
        return True

    store.create_file(FILE, owner_may_have=PLENTY)
    with ThreadPoolExecutor(8) as pool:
        tasks = [(pool.submit(create_job, n), pool.submit(delete, n)) for n in range(12)]
    made = [job.result() for job, _ in tasks]
    deleted = [gone.result() for _, gone in tasks]
    assert deleted.count(True) == (0 if any(made) else 1)


def test_a_quota_holds_also_for_uploads_at_once(store: SqlStore) -> None:
    def upload(n: int) -> bool:
        try:
            store.create_file(replace(FILE, id=f"file_{n}", bytes=10), owner_may_have=35)
        except FileQuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(upload, range(16))) == 3
    assert store.file_bytes("me") == 30
    store.create_file(replace(FILE, id="theirs", owner="other", bytes=35), owner_may_have=35)


def test_a_key_makes_one_file(store: SqlStore) -> None:
    made = store.create_file(FILE, owner_may_have=PLENTY, idempotency_key="k").file
    again = store.create_file(replace(FILE, id="file_2"), owner_may_have=0, idempotency_key="k")
    assert (again.file, again.replayed) == (made, True)
    other = replace(FILE, id="file_3", owner="other")
    assert store.create_file(other, owner_may_have=PLENTY, idempotency_key="k").file.id == "file_3"
    for changed in ({"name": "m"}, {"purpose": "texts"}, {"sha256": "1" * 64}):
        with pytest.raises(IdempotencyKeyReused):
            store.create_file(replace(FILE, **changed), owner_may_have=PLENTY, idempotency_key="k")
    store.delete_file("file_1", "me")
    with pytest.raises(FileDeleted):
        store.create_file(FILE, owner_may_have=PLENTY, idempotency_key="k")
    # A file that was refused has left no key behind.
    with pytest.raises(FileQuotaExceeded):
        store.create_file(FILE, owner_may_have=0, idempotency_key="later")
    assert not store.create_file(FILE, owner_may_have=PLENTY, idempotency_key="later").replayed


def test_workers_are_seen_with_their_jobs_and_forgotten(store: SqlStore, clock: Any) -> None:
    store.record_worker(CARD)
    clock.time += 7
    store.record_worker(replace(CARD, queues=("cpu",)))
    create(store)
    job = store.claim("job_1", 1, worker="h:1", lease_s=30)
    assert job is not None
    store.record_worker(replace(CARD, id="h:2"))
    clock.time += 3
    first, second = store.list_workers()
    assert (first.id, first.queues, first.versions) == ("h:1", ("cpu",), {"celery": "5"})
    assert (first.started_at, first.heartbeat_at) == (clock.time - 10, clock.time - 3)
    assert (first.heartbeat_age_s, first.jobs) == (3, (("job_1", "me"),))
    assert (second.id, second.queues, second.jobs) == ("h:2", ("cpu", "gpu.any"), ())
    store.forget_worker("h:2")
    clock.time += 86_401
    assert [worker.id for worker in store.list_workers()] == ["h:1"]
    store.record_worker(replace(CARD, id="h:3"))
    assert [worker.id for worker in store.list_workers()] == ["h:3"]


def test_the_queue_is_counted(store: SqlStore, clock: Any) -> None:
    assert store.queue_state().waiting == {}
    assert store.queue_state().oldest_wait_s is None
    for n in range(3):
        create(store, f"job_{n}")
        clock.time += 2
    store.create_job("job_high", "other", SPEC.model_copy(update={"priority": 9}), {})
    claim(store, "job_0")
    create(store, "job_paused")
    store.request("job_paused", Action.PAUSE)
    state = store.queue_state()
    assert (list(state.waiting.items()), state.running, state.paused) == ([(9, 1), (5, 2)], 1, 1)
    assert state.oldest_wait_s == 4  # of job_1, from 2 to 6
