"""The supervisor with real child processes (standin_child.py) on a real SQLite database."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from jobs.errors import StoreUnavailable
from jobs.migrate import upgrade
from jobs.schema import jobs
from jobs.settings import Settings
from jobs.spec import Job, PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from worker.supervisor import Supervisor

ROOT = Path(__file__).parents[2]
CHILD = Path(__file__).with_name("standin_child.py")
LONG_S = 600.0


def spec(**limits: float) -> PPOSpec:
    return PPOSpec.model_validate_json(
        json.dumps(
            {
                "limits": {"max_attempts": 2, **limits},
                "config": {
                    "model": {"name": "m"},
                    "data": {"prompts": ["a"]},
                    "reward": {"kind": "sentiment"},
                    "optimization": {"steps": 1},
                },
            }
        )
    )


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    monkeypatch.setenv("KLEASH_DATABASE_URL", url)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return url


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    store = SqlStore(url)
    yield store
    store.close()


class Unrenewable(SqlStore):
    """A database that refuses renewals."""

    def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> Job:
        raise StoreUnavailable("away")


@pytest.fixture
def start(tmp_path: Path, store: SqlStore) -> Callable[..., Callable[[], Status | None]]:
    """`start(mode, **settings)` gives a supervisor's run of a new job, not yet begun."""

    def prepare(
        mode: str,
        *,
        limits: dict[str, float] | None = None,
        through: SqlStore | None = None,
        **settings: float,
    ) -> Callable[[], Status | None]:
        store.create_job("job_1", "me", spec(**limits or {}), {})
        quick = {"heartbeat_s": 0.05, "lease_s": 60.0, "stop_grace_s": LONG_S} | settings
        supervisor = Supervisor(
            through or store,
            Settings(data=tmp_path, **quick),  # type: ignore[arg-type]
            worker="w",
            command=[sys.executable, str(CHILD), mode, str(tmp_path)],
        )
        return lambda: supervisor.run("job_1", store.get_job("job_1").epoch)

    return prepare


def wait_until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "waited for two minutes"
        time.sleep(0.02)


def assert_nothing_lives(folder: Path) -> None:
    """Returns once every process that shared the child's lock has gone; else the test's timeout ends it."""
    with (folder / "alive").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def set_row(store: SqlStore, **values: Any) -> None:
    with store.writing() as connection:
        connection.execute(update(jobs).values(**values))


def run_and(run: Callable[[], Any], folder: Path, act: Callable[[], Any]) -> Any:
    """Run a supervisor and, once its child has started, `act`; returns what the supervisor returns."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        wait_until(lambda: (folder / "starts").exists() or future.done())
        act()
        return future.result()


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
    assert error.log_tail == tuple(f"line {n}" for n in range(10, 30))


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

    def shut_down(*_: object) -> Any:
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


WORKER = """
import signal, sys
from pathlib import Path
from jobs.settings import Settings
from jobs.sql_store import open_store
from worker.supervisor import Supervisor

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as Celery's pool process does
settings = Settings()
Supervisor(open_store(settings), settings, worker="w", command=sys.argv[1:]).run("job_1", 1)
"""


@pytest.fixture
def worker(tmp_path: Path, store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`worker(mode)` is a process with a supervisor whose child has started."""
    store.create_job("job_1", "me", spec(), {})
    for name, value in {"DATA": str(tmp_path), "HEARTBEAT_S": "0.05", "STOP_GRACE_S": "600"}.items():
        monkeypatch.setenv(f"KLEASH_{name}", value)

    def begin(mode: str) -> Any:
        child = [sys.executable, str(CHILD), mode, str(tmp_path)]
        process = subprocess.Popen([sys.executable, "-c", WORKER, *child])
        wait_until(lambda: (tmp_path / "starts").exists() or process.poll() is not None)
        return process

    return begin


def test_a_worker_that_shuts_down_hands_its_job_back(
    tmp_path: Path, store: SqlStore, worker: Callable[[str], Any]
) -> None:
    process = worker("obey")
    process.terminate()
    assert process.wait() == 0
    job = store.get_job("job_1")
    assert (job.status, job.crash_count, job.epoch) == (Status.QUEUED, 0, 2)
    assert store.list_events("job_1")[-1].data == {"reason": "its worker is shutting down", "crashed": False}
    assert_nothing_lives(tmp_path)


def test_kill_9_of_the_worker_ends_the_child_and_the_reaper_requeues(
    tmp_path: Path, store: SqlStore, worker: Callable[[str], Any]
) -> None:
    process = worker("orphan")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert_nothing_lives(tmp_path)
    set_row(store, lease_until=0.0)
    assert [item.status for item in store.reap()] == [Status.QUEUED]
