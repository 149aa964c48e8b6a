"""What CeleryBroker sends, a real Celery worker on a real Valkey runs; whatever else arrives, it drops."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from jobs.migrate import upgrade
from jobs.queue import RUN_JOB, CeleryBroker
from jobs.spec import PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.contracts.hostile_messages import SEPARATOR, encoded, hostile_items, message

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests" / "worker" / "standin_child.py"
SPEC = PPOSpec.model_validate_json(
    """{"config": {"model": {"name": "m"}, "data": {"prompts": ["a"]},
        "reward": {"kind": "sentiment"}, "optimization": {"steps": 1}}}"""
)

# worker.app with another training command
APP = """
import sys
from functools import partial
import worker.app

worker.app.Supervisor = partial(worker.app.Supervisor, command=[sys.executable, {child!r}, {mode!r}, {folder!r}])
app = worker.app.app
"""
OPTIONS = "--pool prefork --concurrency 1 -Q cpu,gpu.any --without-gossip --without-mingle --loglevel INFO"

HOSTILE = 1000 if "KLEASH_SOAK" in os.environ else 300


def wait_until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "waited for two minutes"
        time.sleep(0.05)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    url = f"sqlite:///{tmp_path}/kleash.db"
    upgrade(url)
    store = SqlStore(url)
    store.create_job("job_1", "me", SPEC, {})
    yield store
    store.close()


@pytest.fixture
def start_worker(tmp_path: Path, store: SqlStore, valkey: Any) -> Iterator[Callable[[str], Any]]:
    """`start_worker(mode)` is a Celery worker's main process; its log is `worker.log`."""
    started = []

    def start(mode: str) -> Any:
        (tmp_path / "standin_app.py").write_text(
            APP.format(child=str(CHILD), mode=mode, folder=str(tmp_path))
        )
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{tmp_path}",
            "KLEASH_DATABASE_URL": str(store.engine.url),
            "KLEASH_BROKER_URL": valkey.url,
            "KLEASH_DATA": str(tmp_path),
            "KLEASH_HEARTBEAT_S": "0.1",
            "REMAP_SIGTERM": "SIGQUIT",
        }
        command = [sys.executable, "-m", "celery", "-A", "standin_app", "worker", *OPTIONS.split()]
        with (tmp_path / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_message_runs_the_job_once_and_hostile_ones_run_nothing(
    tmp_path: Path, store: SqlStore, valkey: Any, start_worker: Callable[[str], Any]
) -> None:
    worker, waiting = start_worker("succeed"), valkey.client().keys
    wait_until(lambda: store.list_workers() or worker.poll() is not None)
    (shown,) = store.list_workers()
    assert (shown.id.split(":")[1], shown.queues) == (str(worker.pid), ("cpu", "gpu.any"))
    assert {"kleash", "celery", "torch"} <= shown.versions.keys()
    hostile = Celery(broker=valkey.url, set_as_current=False)
    hostile.conf.task_serializer = "pickle"
    hostile.send_task(RUN_JOB, kwargs={"job_id": "job_1", "epoch": 1}, queue="cpu", serializer="pickle")
    hostile.send_task("os.system", args=["true"], queue="cpu", serializer="json")
    for kwargs in ({"job_id": ["job_1"], "epoch": 1}, {"job_id": "job_1", "epoch": "1"}, {"x": 1}):
        hostile.send_task(RUN_JOB, kwargs=kwargs, queue="cpu", serializer="json")
    broker = CeleryBroker(valkey.url)
    broker.publish("job_0", 1, queue="cpu")
    broker.publish("job_1", 2, queue="cpu")
    broker.publish("job_1", 1, queue="gpu.any")
    broker.publish("job_1", 1, queue="cpu")
    wait_until(lambda: store.get_job("job_1").done or worker.poll() is not None)
    wait_until(lambda: not [*waiting("cpu*"), *waiting("gpu.any*")] or worker.poll() is not None)
    assert store.get_job("job_1").status is Status.SUCCEEDED
    assert (tmp_path / "starts").read_text() == "1\n"
    assert worker.poll() is None


def test_hostile_items_run_nothing_and_the_worker_works_on(
    tmp_path: Path, store: SqlStore, valkey: Any, start_worker: Callable[[str], Any]
) -> None:
    """In the lists themselves, where they need not even be JSON; and in what holds unacknowledged messages."""
    canary, client = tmp_path / "canary", valkey.client()
    for queue, item in hostile_items(HOSTILE, 0, str(canary)):
        client.lpush(queue, item)
    for tag in ("a", "b", "c"):
        client.zadd("unacked_index", {tag: 0.0})
    client.hset("unacked", "a", b"\x80")
    client.hset("unacked", "b", b"[1, 2, 3]")
    client.lpush("cpu" + SEPARATOR + "9", b"x" * 20_000_000)
    worker = start_worker("succeed")
    wait_until(lambda: not client.keys("cpu*") or worker.poll() is not None)
    client.set("gpu.any", "no list")
    time.sleep(2)  # a pop that waits takes one
    client.delete("gpu.any")
    client.publish(
        "/0.celery.pidbox", json.dumps(message(body=encoded({"method": "shutdown", "arguments": {}})))
    )
    CeleryBroker(valkey.url).publish("job_1", 1, queue="cpu")
    wait_until(lambda: store.get_job("job_1").done or worker.poll() is not None)
    assert store.get_job("job_1").status is Status.SUCCEEDED
    assert (tmp_path / "starts").read_text() == "1\n"
    assert worker.poll() is None
    assert not canary.exists()
    wait_until(lambda: client.hlen("unacked") == client.zcard("unacked_index") == 0)
    said = (tmp_path / "worker.log").read_text()
    assert "dropped what is no message of ours" in said
    assert len(said) < 300_000
    assert "Traceback" not in said


def test_sigterm_of_the_worker_hands_the_job_back_and_the_next_one_takes_it(
    tmp_path: Path, store: SqlStore, valkey: Any, start_worker: Callable[[str], Any]
) -> None:
    worker = start_worker("obey")
    CeleryBroker(valkey.url).publish("job_1", 1, queue="cpu")
    wait_until(lambda: (tmp_path / "starts").exists() or worker.poll() is not None)
    wait_until(store.list_workers)
    assert [shown.jobs for shown in store.list_workers()] == [(("job_1", "me"),)]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert store.list_workers() == [], "it took its leave"
    job = store.get_job("job_1")
    assert (job.status, job.epoch, job.crash_count) == (Status.QUEUED, 2, 0)
    assert (tmp_path / "jobs" / "job_1" / "1" / "log.txt").read_text() == "saved\n"
    start_worker("succeed")
    CeleryBroker(valkey.url).publish("job_1", 2, queue="cpu")
    wait_until(lambda: store.get_job("job_1").done)
    assert (store.get_job("job_1").status, store.get_job("job_1").attempt) == (Status.SUCCEEDED, 2)


def test_kill_9_of_the_worker_leaves_nothing_running(
    tmp_path: Path, store: SqlStore, valkey: Any, start_worker: Callable[[str], Any]
) -> None:
    worker = start_worker("orphan")
    CeleryBroker(valkey.url).publish("job_1", 1, queue="cpu")
    wait_until(lambda: (tmp_path / "starts").exists() or worker.poll() is not None)
    worker.kill()
    with (tmp_path / "alive").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
    assert store.get_job("job_1").status is Status.RUNNING, "its lease is the reaper's business"
