"""docker-compose.yml itself, run: its commands, environment, secrets and order, as processes."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial

import httpx2
import pytest

from kleash import Client
from tests.composed import Composed, until
from tests.e2e.compose_walk import LONG, offer, walk
from tests.rooms import ROOT
from tests.stack import nobody_is_left

SERVICES = ("postgres", "valkey", "migrate", "scorer", "api", "worker")
REPLICAS = {"api": 2, "worker": 2}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    folder = tmp_path_factory.mktemp("compose")
    stack = Composed(ROOT / "docker-compose.yml", folder, offer(folder / "models"), REPLICAS)
    try:
        stack.up(*SERVICES)
        stack.wait()
        yield stack
    finally:
        codes = stack.close()
        assert nobody_is_left(folder / "volumes" / "artifacts")
    assert set(codes.values()) <= {0, -signal.SIGTERM}, f"{codes}{stack.story()}"


def key(stack: Composed) -> str:
    """As the README says: docker compose exec api cat /data/key."""
    return stack.containers["api-1"].path("/data/key").read_text().strip()


def test_every_healthcheck_fails_before_its_service_runs_and_passes_after(stack: Composed) -> None:
    for container in stack.lasting():
        assert not container.healthy_before, container.name
        assert container.healthy(), f"{container.name}{stack.story()}"


def test_the_walk_through_both_replicas_of_the_api(stack: Composed) -> None:
    urls = [stack.url(name) for name in ("api-1", "api-2")]
    for url in urls:
        checks = partial(httpx2.get, f"{url}/ready", timeout=60)
        until(lambda checks=checks: set(checks().json()["checks"].values()) == {"ok"}, stack.story)
        assert httpx2.get(f"{url}/v1/jobs", timeout=60).status_code == 401
    walk(key(stack), urls)


def test_a_job_whose_child_still_starts_is_cancelled_without_the_grace(stack: Composed) -> None:
    """The file's grace is 150 s: a child that is deaf to SIGTERM while it imports would use it up."""
    with Client(stack.url("api-1"), key(stack)) as client:
        job_id = client.jobs.create(LONG)["id"]
        until(lambda: client.jobs.get(job_id)["status"] == "running", stack.story)
        client.jobs.cancel(job_id)
        assert client.jobs.wait(job_id, timeout_s=60, every_s=0.2)["status"] == "cancelled"


def test_a_worker_that_hangs_loses_its_sign_of_life_and_gets_it_back(stack: Composed) -> None:
    worker = stack.containers["worker-2"]
    alive = worker.env()["KLEASH_ALIVE_FILE"]
    until(worker.healthy, stack.story)
    assert worker.process is not None
    worker.process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED)  # else it may touch the file once more
        os.utime(alive, (time.time() - 61,) * 2)
        assert not worker.healthy()
    finally:
        worker.process.send_signal(signal.SIGCONT)
    until(worker.healthy, stack.story)


def test_nothing_has_died(stack: Composed) -> None:
    for container in stack.lasting():
        assert container.process is None or container.process.poll() is None, stack.story()
