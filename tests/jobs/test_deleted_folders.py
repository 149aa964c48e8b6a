"""Folders of deleted jobs and checkpoints go, whoever dies on the way, and nobody else's does."""

import os
import signal
from pathlib import Path

import pytest

from jobs import faults
from jobs.deleted_folders import LATE_WRITES_S, remove_deleted
from jobs.files import LocalFiles
from jobs.migrate import upgrade
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Status

SPEC = PPOSpec.model_validate_json(
    """{"config": {"model": {"name": "m"}, "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"}, "optimization": {"steps": 1}}}"""
)
# Every moment that differs for what is durable: before and after the deletion, and around the folder's removal.
POINTS = [
    "commit.delete.before",
    "commit.delete.after",
    "remove.before",
    "fsync.before",
    "remove.after",
]
POINTS += ["commit.forget_deleted.before"]


def site(folder: Path) -> SqlStore:
    """Two jobs that have ended, each with a folder and a checkpoint."""
    url = f"sqlite:///{folder}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    for job_id in ("job_1", "job_2"):
        store.create_job(job_id, "me", SPEC, {})
        store.claim(job_id, 1, worker="w", lease_s=60)
        path = f"{job_id}/1/step-1"
        store.record_checkpoint(job_id, 1, name="step-1", step=1, path=path, sha256="0" * 64, size=1)
        store.finish(job_id, 1, Status.SUCCEEDED)
        (folder / "jobs" / job_id / "1" / "step-1").mkdir(parents=True)
        (folder / "jobs" / job_id / "1" / "log.txt").write_text("x")
    return store


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "jobs").iterdir())


@pytest.fixture
def store(tmp_path: Path) -> SqlStore:
    return site(tmp_path)


def test_only_the_folder_of_a_deleted_job_goes(store: SqlStore, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    assert remove_deleted(store, LocalFiles(), jobs) == 0
    store.delete_job("job_1")
    assert folders(tmp_path) == ["job_1", "job_2"], "the API may not write there"
    assert [remove_deleted(store, LocalFiles(), jobs) for _ in range(2)] == [1, 0]
    assert folders(tmp_path) == ["job_2"]


def test_what_a_late_process_wrote_goes_too(tmp_path: Path) -> None:
    now = [1000.0]
    site(tmp_path).close()
    store = SqlStore(f"sqlite:///{tmp_path}/kleash.db", now=lambda: now[0])
    store.delete_job("job_1")
    remove_deleted(store, LocalFiles(), tmp_path / "jobs")
    (tmp_path / "jobs" / "job_1" / "1" / "step-2").mkdir(parents=True)
    assert remove_deleted(store, LocalFiles(), tmp_path / "jobs") == 1
    assert folders(tmp_path) == ["job_2"]
    now[0] += LATE_WRITES_S + 1
    remove_deleted(store, LocalFiles(), tmp_path / "jobs")
    assert store.deleted_folders() == []


def test_a_folder_that_cannot_go_waits(store: SqlStore, tmp_path: Path) -> None:
    class Stubborn(LocalFiles):
        def remove_folder(self, folder: Path) -> None:
            raise PermissionError(folder.name)

    store.delete_job("job_1")
    store.delete_job("job_2")
    assert remove_deleted(store, Stubborn(), tmp_path / "jobs") == 0
    assert set(store.deleted_folders()) == {"job_1", "job_2"}
    assert remove_deleted(store, LocalFiles(), tmp_path / "jobs") == 2


def delete(store: SqlStore, what: str) -> None:
    """Of job_1, which is there."""
    if what == "job":
        store.delete_job("job_1")
    else:
        store.delete_checkpoint(store.list_checkpoints("job_1")[0].id, "me")


def delete_and_clear_in_a_process(folder: Path, what: str, point: str) -> int:
    """Its wait status; it dies where it is told to."""
    if (pid := os.fork()) == 0:
        try:
            faults._armed = {point.replace("delete.", f"delete_{what}."): 1}
            store = SqlStore(f"sqlite:///{folder}/kleash.db")
            delete(store, what)
            remove_deleted(store, LocalFiles(), folder / "jobs")
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("what", ["job", "checkpoint"])
@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_on_the_way_has_a_successor(
    store: SqlStore, tmp_path: Path, point: str, what: str
) -> None:
    def rows() -> list[str]:
        ids = [job.id for job in store.list_jobs()]
        return ids if what == "job" else [i for i in ids if store.list_checkpoints(i)]

    def places() -> list[str]:
        """Of the jobs that have their folder, or their checkpoint's."""
        jobs = tmp_path / "jobs"
        return [
            name for name in folders(tmp_path) if what == "job" or (jobs / name / "1" / "step-1").exists()
        ]

    store.close()  # a fork must find no connection
    assert os.WTERMSIG(delete_and_clear_in_a_process(tmp_path, what, point)) == signal.SIGKILL
    assert set(places()) >= set(rows()), "no row without its folder"
    if "job_1" in rows():
        delete(store, what)
    remove_deleted(store, LocalFiles(), tmp_path / "jobs")
    assert (places(), rows()) == (["job_2"], ["job_2"])
    assert (tmp_path / "jobs" / "job_1" / "1" / "log.txt").exists() == (what == "checkpoint")
