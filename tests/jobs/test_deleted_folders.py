"""Folders of deleted jobs go, whoever dies on the way, and nobody else's does."""

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
from jobs.states import Action

SPEC = PPOSpec.model_validate_json(
    """{"config": {"model": {"name": "m"}, "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"}, "optimization": {"steps": 1}}}"""
)
# Every moment that differs for what is durable: before and after the deletion, and around the folder's removal.
POINTS = [
    "commit.delete_job.before",
    "commit.delete_job.after",
    "remove.before",
    "fsync.before",
    "remove.after",
]
POINTS += ["commit.forget_deleted.before"]


def site(folder: Path) -> SqlStore:
    """Two jobs that have ended, each with a folder."""
    url = f"sqlite:///{folder}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    for job_id in ("job_1", "job_2"):
        store.create_job(job_id, "me", SPEC, {})
        store.request(job_id, Action.CANCEL)
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
    assert store.deleted_jobs() == []


def test_a_folder_that_cannot_go_waits(store: SqlStore, tmp_path: Path) -> None:
    class Stubborn(LocalFiles):
        def remove_folder(self, folder: Path) -> None:
            raise PermissionError(folder.name)

    store.delete_job("job_1")
    store.delete_job("job_2")
    assert remove_deleted(store, Stubborn(), tmp_path / "jobs") == 0
    assert set(store.deleted_jobs()) == {"job_1", "job_2"}
    assert remove_deleted(store, LocalFiles(), tmp_path / "jobs") == 2


def delete_and_clear_in_a_process(folder: Path, point: str) -> int:
    """Its wait status; it dies where it is told to."""
    if (pid := os.fork()) == 0:
        try:
            faults._armed = {point: 1}
            store = SqlStore(f"sqlite:///{folder}/kleash.db")
            store.delete_job("job_1")
            remove_deleted(store, LocalFiles(), folder / "jobs")
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_on_the_way_has_a_successor(store: SqlStore, tmp_path: Path, point: str) -> None:
    store.close()  # a fork must find no connection
    assert os.WTERMSIG(delete_and_clear_in_a_process(tmp_path, point)) == signal.SIGKILL
    there = [job.id for job in store.list_jobs()]
    assert set(folders(tmp_path)) >= set(there), "no job without its folder"
    if "job_1" in there:
        store.delete_job("job_1")
    remove_deleted(store, LocalFiles(), tmp_path / "jobs")
    assert folders(tmp_path) == ["job_2"]
    assert [job.id for job in store.list_jobs()] == ["job_2"]
