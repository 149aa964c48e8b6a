"""Why a supervisor ends its child: a client, a lost or unrenewed lease, a limit."""

import threading
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import StoreUnavailable
from jobs.spec import Job
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from jobs.store_jobs import Ending
from tests.worker.supervised import LONG_S, Unrenewable, assert_nothing_lives, run_and, set_row, wait_until


@pytest.mark.parametrize(("action", "ended"), [("cancel", "cancelled"), ("pause", "paused")])
@pytest.mark.parametrize(("mode", "grace_s"), [("obey", LONG_S), ("deaf", 0.2)])
def test_a_client_stops_the_run(
    tmp_path: Path, store: SqlStore, start: Any, action: str, ended: str, mode: str, grace_s: float
) -> None:
    status = run_and(
        start(mode, stop_grace_s=grace_s), tmp_path, lambda: store.request("job_1", Action(action))
    )
    job = store.get_job("job_1")
    assert status == job.status == ended
    assert job.crash_count == 0
    log = (tmp_path / "jobs" / "job_1" / "1" / "log.txt").read_text()
    assert log == ("saved\n" if mode == "obey" else "")
    assert_nothing_lives(tmp_path)


@pytest.mark.parametrize(
    ("mode", "worker_s", "ending", "log"),
    [
        ("obey slowly", 0.0, Ending(grace_s=LONG_S), "saved\n"),  # longer than the worker gives
        ("deaf", LONG_S, Ending(grace_s=0.3), ""),
        ("obey", LONG_S, Ending(saves=False), ""),  # not even asked to save
        ("deaf", LONG_S, Ending(saves=False, grace_s=LONG_S), ""),
    ],
)
def test_a_cancel_says_how_the_process_ends(
    tmp_path: Path, store: SqlStore, start: Any, mode: str, worker_s: float, ending: Ending, log: str
) -> None:
    run = start(mode, stop_grace_s=worker_s)
    status = run_and(run, tmp_path, lambda: store.request("job_1", Action.CANCEL, ending=ending))
    assert status is store.get_job("job_1").status is Status.CANCELLED
    assert (tmp_path / "jobs" / "job_1" / "1" / "log.txt").read_text() == log
    assert_nothing_lives(tmp_path)


@pytest.mark.parametrize("ending", [Ending(saves=False), Ending(grace_s=0.3)])
def test_a_cancel_hurries_a_process_that_was_told_to_pause(
    tmp_path: Path, store: SqlStore, start: Any, ending: Ending
) -> None:
    def pause_and_cancel() -> None:
        store.request("job_1", Action.PAUSE)
        wait_until((tmp_path / "told").exists)
        store.request("job_1", Action.CANCEL, ending=ending)

    assert run_and(start("deaf"), tmp_path, pause_and_cancel) is Status.CANCELLED
    assert_nothing_lives(tmp_path)


def test_a_pause_taken_back_after_the_child_was_told_to_stop_goes_on_in_a_new_attempt(
    tmp_path: Path, store: SqlStore, start: Any
) -> None:
    log = tmp_path / "jobs" / "job_1" / "1" / "log.txt"

    def pause_and_resume() -> None:
        store.request("job_1", Action.PAUSE)
        wait_until(lambda: "saved" in log.read_text())
        if store.request("job_1", Action.RESUME).status is Status.QUEUED:
            seen.append("job.resumed")  # the supervisor had already written `paused`

    seen: list[str] = []
    status = run_and(start("obey"), tmp_path, pause_and_resume)
    job = store.get_job("job_1")
    assert (job.status, job.epoch, job.crash_count) == (Status.QUEUED, 2, 0)
    kinds = [event.type for event in store.list_events("job_1")][2:]
    if seen:
        assert (status, kinds) == (Status.PAUSED, ["job.pausing", "job.paused", "job.resumed"])
    else:
        assert (status, kinds) == (Status.QUEUED, ["job.pausing", "job.pause_withdrawn", "job.requeued"])
    assert_nothing_lives(tmp_path)


def test_a_lost_lease_ends_the_child_and_writes_nothing(tmp_path: Path, store: SqlStore, start: Any) -> None:
    seen: list[Job] = []

    def replace_owner() -> None:
        set_row(store, attempt=2, worker="other")
        seen.append(store.get_job("job_1"))

    assert run_and(start("deaf"), tmp_path, replace_owner) is None
    assert seen == [store.get_job("job_1")]
    assert_nothing_lives(tmp_path)


class NoHeartbeat(Unrenewable):
    """A database that refuses renewals, or hangs in them until `back` is set."""

    hangs = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.back = threading.Event()

    def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> Job:
        if self.hangs:
            self.back.wait()
        return super().heartbeat(job_id, attempt, lease_s=lease_s)


@pytest.mark.parametrize("hangs", [False, True])
def test_the_child_is_gone_before_a_lease_that_cannot_be_renewed_ends(
    tmp_path: Path, url: str, store: SqlStore, start: Any, hangs: bool
) -> None:
    away = NoHeartbeat(url)
    away.hangs = hangs
    assert start("deaf", through=away, lease_s=3.0)() is Status.QUEUED
    assert_nothing_lives(tmp_path)
    assert store.get_job("job_1").crash_count == 0
    away.back.set()
    away.close()


class AwayAfterClaim(NoHeartbeat):
    """A database that answers the claim and nothing after it."""

    def get_job(self, job_id: str, owner: str | None = None) -> Job:
        raise StoreUnavailable("away")


def test_an_ending_that_cannot_be_written_is_left_to_the_reaper(
    tmp_path: Path, url: str, store: SqlStore, start: Any
) -> None:
    assert start("7", through=AwayAfterClaim(url), lease_s=1.0)() is None
    assert store.get_job("job_1").status is Status.RUNNING
    wait_until(store.reap)
    assert store.get_job("job_1").status is Status.QUEUED


def test_a_run_without_progress_is_a_crash(tmp_path: Path, store: SqlStore, start: Any) -> None:
    run = start("deaf", stall_after_s=0.5, stop_grace_s=0.2)
    assert run() is Status.QUEUED
    assert run() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "stalled"
    assert_nothing_lives(tmp_path)


def test_a_run_that_takes_too_long_fails(store: SqlStore, start: Any) -> None:
    assert start("obey", limits={"max_runtime_s": 0.5})() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "timeout"
    assert "0.5" in error.detail
