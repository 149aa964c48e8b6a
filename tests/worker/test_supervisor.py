"""How a run ends, told by real child processes (standin_child.py) to a supervisor on a real SQLite database."""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import Settings
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.worker.supervised import Unrenewable, assert_nothing_lives, spec
from worker.child_log import TAIL_LINES
from worker.supervisor import Supervisor


def test_the_child_succeeds(tmp_path: Path, store: SqlStore, start: Any) -> None:
    assert start("succeed")() is Status.SUCCEEDED
    job = store.get_job("job_1")
    assert (job.status, job.result, job.crash_count) == (Status.SUCCEEDED, {"model": "m"}, 0)
    assert_nothing_lives(tmp_path)


def test_a_child_that_succeeded_and_does_not_exit_is_ended(
    tmp_path: Path, store: SqlStore, start: Any
) -> None:
    assert start("succeed and linger", stop_grace_s=0.2)() is Status.SUCCEEDED
    assert store.get_job("job_1").status is Status.SUCCEEDED
    assert_nothing_lives(tmp_path)


def test_a_job_may_be_deleted_before_its_supervisor_has_looked(
    tmp_path: Path, store: SqlStore, start: Any
) -> None:
    assert start("succeed and be deleted")() is None
    assert store.deleted_folders() == ["job_1"]
    assert_nothing_lives(tmp_path)


def test_a_known_failure_is_told_to_the_client(store: SqlStore, start: Any) -> None:
    assert start("fail")() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert (error.code, error.detail, error.hint, error.step) == ("nan_loss", "NaN in the loss", "h", 3)


@pytest.mark.parametrize("mode", ["fail mutely", "0"])
def test_an_ending_without_a_word_is_a_crash_that_is_not_repeated(
    store: SqlStore, start: Any, mode: str
) -> None:
    assert start(mode)() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "crashed"


def test_a_full_disk_is_known_by_the_exit_code_alone(store: SqlStore, start: Any) -> None:
    assert start("74")() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "disk_full"
    assert "resume_from" in (error.hint or "")


def test_a_told_crash_is_tried_again(store: SqlStore, start: Any) -> None:
    run = start("71")
    assert run() is Status.QUEUED
    assert run() is Status.FAILED


def test_what_an_attempt_left_goes_with_it(tmp_path: Path, store: SqlStore, start: Any) -> None:
    left = tmp_path / "jobs" / "job_1" / "1" / "step-1.partial"
    left.mkdir(parents=True)
    start("signal")()
    assert not left.exists()
    assert (left.parent / "log.txt").exists()


def test_crashes_are_retried_until_there_are_too_many(store: SqlStore, start: Any) -> None:
    run = start("signal")
    assert run() is Status.QUEUED
    job = store.get_job("job_1")
    assert (job.crash_count, job.epoch, job.error) == (1, 2, None)
    assert run() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "crashed"
    assert "SIGKILL" in error.detail
    assert error.log_tail == tuple(f"line {n}" for n in range(50 - TAIL_LINES, 50))


def test_stopping_unasked_counts_or_it_could_go_on_for_ever(store: SqlStore, start: Any) -> None:
    run = start("75")
    assert run() is Status.QUEUED
    job = store.get_job("job_1")
    assert (job.crash_count, job.epoch) == (1, 2)
    assert run() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert (error.code, error.hint is None) == ("crashed", False)


def test_a_child_that_alone_finds_no_database_is_a_crash_with_a_name(store: SqlStore, start: Any) -> None:
    run = start("69")
    assert run() is Status.QUEUED
    assert run() is Status.FAILED
    error = store.get_job("job_1").error
    assert error is not None
    assert error.code == "store_unavailable"


def test_a_database_that_is_away_costs_no_attempt_though_the_child_sees_it_first(
    url: str, store: SqlStore, start: Any
) -> None:
    away = Unrenewable(url)
    assert start("69 soon", through=away, lease_s=3.0)() is Status.QUEUED
    assert store.get_job("job_1").crash_count == 0
    away.close()


def test_two_supervisors_with_one_message_start_one_child(
    tmp_path: Path, store: SqlStore, start: Any
) -> None:
    run = start("succeed")
    barrier = threading.Barrier(2)

    def at_once(_: int) -> Status | None:
        barrier.wait()
        return run()  # type: ignore[no-any-return]

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(at_once, range(2))) == {Status.SUCCEEDED, None}
    assert (tmp_path / "starts").read_text() == "1\n"


def test_grandchildren_do_not_outlive_the_run(tmp_path: Path, start: Any) -> None:
    start("leave a grandchild")()
    assert_nothing_lives(tmp_path)


def test_a_command_that_cannot_start_is_a_crash(tmp_path: Path, store: SqlStore) -> None:
    store.create_job("job_1", "me", spec(), {})
    supervisor = Supervisor(store, Settings(data=tmp_path), worker="w", command=[str(tmp_path / "none")])
    assert supervisor.run("job_1", 1) is Status.QUEUED
    assert supervisor.run("job_1", 2) is Status.FAILED
    assert supervisor.run("job_1", 2) is None


def test_a_shutdown_before_there_is_a_child_hands_the_job_back(tmp_path: Path, store: SqlStore) -> None:
    store.create_job("job_1", "me", spec(), {})

    def shut_down(*_: object, **__: object) -> Any:
        sys.exit(0)  # as Celery does wherever we are

    supervisor = Supervisor(store, Settings(data=tmp_path), worker="w", start_child=shut_down)
    with pytest.raises(SystemExit):
        supervisor.run("job_1", 1)
    job = store.get_job("job_1")
    assert (job.status, job.crash_count, job.epoch) == (Status.QUEUED, 0, 2)


def test_the_childs_environment_fixes_what_results_depend_on(
    tmp_path: Path, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_DYNAMIC", raising=False)
    start("environment")()
    seen = json.loads((tmp_path / "jobs" / "job_1" / "1" / "environment.json").read_text())
    assert (seen["OMP_NUM_THREADS"], seen["MKL_DYNAMIC"]) == ("1", "FALSE")
