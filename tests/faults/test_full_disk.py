"""A disk that is full for everything at once: database, checkpoints, logs, the broker's file. The API stays."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.callers import Caller, Promises
from tests.faults.checker import violations
from tests.faults.cluster import LEASE_S, Cluster, until
from tests.faults.work import job

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(ballast: Path) -> None:
    """Until nothing more fits."""
    with ballast.open("ab", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.timeout(400)
def test_a_full_disk_stops_jobs_and_never_the_api(disk: Path, tiny_registry: Path) -> None:
    cluster = Cluster(disk, tiny_registry)
    with cluster.running():
        caller = Caller(cluster.urls, Promises())
        api = cluster.apis[0].pid()
        running = caller.create(job(steps=5000, every_steps=1))
        until(lambda: caller.get(running)["progress"]["step"] > 2, "a few steps")
        end, answers = time.monotonic() + 4 * LEASE_S, dict[str, set[int]]()
        with httpx2.Client(base_url=cluster.urls[0], timeout=30, trust_env=False) as client:
            while time.monotonic() < end:
                fill(disk / "ballast")  # what others give back, too
                for method, path in (
                    ("GET", "/health"),
                    ("GET", f"/v1/jobs/{running}"),
                    ("GET", f"/v1/jobs/{running}/events"),
                    ("POST", "/v1/jobs"),
                    ("POST", f"/v1/jobs/{running}/pause"),
                    ("POST", f"/v1/jobs/{running}/resume"),
                ):
                    body = job(steps=2) if path == "/v1/jobs" else None
                    seen = client.request(method, path, json=body).status_code
                    answers.setdefault(f"{method} {path.replace(running, 'ID')}", set()).add(seen)
        assert answers["GET /health"] == {200}
        assert answers["GET /v1/jobs/ID"] == answers["GET /v1/jobs/ID/events"] == {200}
        for asked in ("POST /v1/jobs", "POST /v1/jobs/ID/pause", "POST /v1/jobs/ID/resume"):
            assert answers[asked] <= {200, 201, 409, 503}, asked
        assert 503 in answers["POST /v1/jobs"], "it was full, and said so"

        (disk / "ballast").unlink()
        assert cluster.apis[0].alive()
        assert cluster.apis[0].pid() == api
        until(cluster.whole, "the cluster is whole again")
        after = caller.create(job(steps=2))
        if caller.act(running, "cancel") == 200:
            until(lambda: caller.get(running)["done"], "the long job ends")
        assert caller.get(running)["status"] in {"cancelled", "failed"}
        until(lambda: caller.get(after)["done"], "the next job ends", patience_s=120)
        assert caller.get(after)["status"] == "succeeded"
        until(lambda: not cluster.training(), "no child trains any more")
        found = violations(cluster.url, cluster.artifacts, created=caller.promises.created, quiescent=False)
        assert found == []
        caller.close()
