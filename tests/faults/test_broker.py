"""The broker away or emptied, and processes that are told to stop: no job is lost, no attempt is spent."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.queue import DEFAULT_QUEUE
from tests.faults.callers import Caller, Promises
from tests.faults.checker import violations
from tests.faults.checker_rows import JobRows, read_database
from tests.faults.cluster import Cluster, Service, until
from tests.faults.work import job

HAND_BACK_S = 10.0
UNDER_SOAK = pytest.mark.skipif("KLEASH_SOAK" not in os.environ, reason="asserts times: make soak")


def rows(cluster: Cluster, job_id: str) -> JobRows:
    return read_database(cluster.url).jobs[job_id]


def finish(cluster: Cluster, caller: Caller, *ids: str) -> None:
    """All succeed, and nothing is wrong with them."""
    for job_id in ids:
        until(lambda job_id=job_id: caller.get(job_id)["done"], f"{job_id} ends", patience_s=120)  # type: ignore[misc]
        assert caller.get(job_id)["status"] == "succeeded"
    promises = caller.promises
    found = violations(
        cluster.url, cluster.artifacts, created=promises.created, keys=promises.keys, quiescent=False
    )
    assert found + promises.failures == []


def test_a_job_outlives_a_broker_that_was_down_and_one_that_was_emptied(
    tmp_path: Path, tiny_registry: Path
) -> None:
    cluster = Cluster(tmp_path, tiny_registry, env={"KLEASH_LEASE_S": "60"})  # nothing is killed
    (worker,) = cluster.workers
    with cluster.running(but=[cluster.valkey, worker]):
        caller = Caller(cluster.urls, Promises())
        job_id = caller.create(job(steps=2, every_steps=1))  # 201 with no broker at all
        assert caller.get(job_id)["status"] == "queued"

        cluster.valkey.start()
        until(cluster.broker_answers, "the broker is up")
        with cluster.broker() as broker:
            # a list per priority, which ceases to be when it is empty
            until(lambda: broker.keys(f"{DEFAULT_QUEUE}*"), "the message arrives")
            broker.flushall()
        worker.start()
        finish(cluster, caller, job_id)
        assert rows(cluster, job_id).row["attempt"] == 1
        caller.close()


class Requests(threading.Thread):
    """Requests without a pause on two replicas: a refused connection is tried on the other, nothing else is."""

    def __init__(self, urls: list[str], work: Callable[["Requests"], object]) -> None:
        super().__init__(daemon=True)
        self.failed: list[str] = []
        self.served = self.refused = 0
        self._urls, self._work, self._enough, self.turn = urls, work, threading.Event(), 0

    def run(self) -> None:
        while not self._enough.is_set():
            self._work(self)

    def send(self, method: str, path: str, **content: Any) -> httpx2.Response | None:
        """One request on a connection of its own; None if it had no answer, which is a failure."""
        self.turn += 1
        for url in (self._urls[self.turn % 2], self._urls[1 - self.turn % 2]):
            try:
                with httpx2.Client(timeout=10, trust_env=False) as client:
                    response = client.request(method, f"{url}{path}", **content)
            except httpx2.ConnectError:
                self.refused += 1
                continue
            except httpx2.TransportError as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return None
            self.served += response.is_success
            if not response.is_success:
                self.failed.append(f"{response.status_code} {response.text}")
            return response
        self.failed.append("both replicas refused")
        return None

    def end(self) -> None:
        self._enough.set()
        self.join()


def until_answered(load: list[Requests]) -> None:
    """Wait for the end of every request that is under way."""
    under_way = [requests.turn for requests in load]
    until(
        lambda: all(requests.turn > turn for requests, turn in zip(load, under_way, strict=True)),
        "requests end",
    )


def terminate(part: Service) -> float:
    """SIGTERM; the seconds until the process has gone."""
    assert part.process is not None
    began = time.monotonic()
    part.process.send_signal(signal.SIGTERM)
    part.process.wait(60)
    return time.monotonic() - began


@UNDER_SOAK
@pytest.mark.timeout(400)
def test_sigterm_under_load(tmp_path: Path, tiny_registry: Path) -> None:
    """A worker checkpoints and hands back within 10 s, no attempt is spent; of two APIs one may always stop."""
    cluster = Cluster(tmp_path, tiny_registry, apis=2, env={"KLEASH_DISPATCH_EVERY_S": "0.2"})
    (worker,) = cluster.workers
    with cluster.running():
        caller = Caller(cluster.urls, Promises())
        job_id = caller.create(job(steps=400, every_steps=1000))
        until(lambda: caller.get(job_id)["progress"]["step"] >= 3, "the job makes steps", patience_s=120)

        create = json.dumps(job(steps=1, name="beside") | {"priority": 0}).encode()
        headers = {"Content-Type": "application/json"}
        load: list[Requests] = [
            Requests(cluster.urls, lambda requests: requests.send("GET", f"/v1/jobs/{job_id}")),
            Requests(cluster.urls, lambda requests: requests.send("GET", "/v1/jobs")),
            Requests(cluster.urls, lambda requests: _create_and_cancel(requests, create, headers)),
        ]
        for requests in load:
            requests.start()
        stops: list[float] = []
        for api in cluster.apis * 2:
            stops.append(terminate(api))
            until(cluster.whole, "the replica is back")
        until(lambda: caller.get(job_id)["progress"]["step"] >= 8, "still at work")
        took = terminate(worker)
        handed_back = rows(cluster, job_id)
        until(lambda: caller.get(job_id)["status"] == "running", "it goes on", patience_s=120)
        for requests in load:
            requests.end()

        assert [requests.failed for requests in load] == [[], [], []]
        assert all(requests.served > 10 for requests in load)
        assert sum(requests.refused for requests in load) > 0  # else nothing was tried
        assert max(stops) <= HAND_BACK_S
        assert took <= HAND_BACK_S
        _assert_handed_back(handed_back)
        finish(cluster, caller, job_id)
        caller.close()


def _create_and_cancel(requests: Requests, body: bytes, headers: dict[str, str]) -> None:
    time.sleep(0.2)
    response = requests.send("POST", "/v1/jobs", content=body, headers=headers)
    if response is not None and response.is_success:
        requests.send("POST", f"/v1/jobs/{response.json()['id']}/cancel")


def _assert_handed_back(seen: JobRows) -> None:
    """At the step where it was, in a checkpoint, and not as a crash."""
    assert seen.row["crash_count"] == 0
    event: dict[str, Any] = next(e for e in seen.events if e["type"] == "job.requeued")
    assert event["data"] == {"reason": "its worker is shutting down", "crashed": False}
    (checkpoint,) = seen.checkpoints
    assert checkpoint["step"] == seen.row["step"] >= 8
