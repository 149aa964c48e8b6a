"""The points of the running stack: armed all at once, each kills one process once, and the jobs end right."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from tests.faults.callers import Caller, Promises, Refused, unasked
from tests.faults.checker import violations
from tests.faults.checker_rows import read_database
from tests.faults.cluster import Cluster, Postgres, until
from tests.faults.processes import children, command
from tests.faults.work import job, score_job

PATIENCE_S, PATIENCE_A_POINT_S = 180.0, 15.0
PAUSE_AT_STEP = 8


class Outcome(NamedTuple):
    """Where each point struck, and what was wrong afterwards."""

    struck: dict[str, str]  # point → the process it ended
    problems: list[str]


class Scenario:
    """Jobs that together pass every point: one plain, one paused and resumed, one cancelled, one that scores.
    What a client may do to checkpoints and jobs that have ended comes after them.

    `light`: two plain ones.
    """

    def __init__(self, cluster: Cluster, armed: Mapping[str, int], *, light: bool) -> None:
        self._cluster, self._armed, self._light = cluster, armed, light
        self.promises = Promises()
        self.caller = Caller(cluster.urls, self.promises, patience_s=60)
        self._asked_to_pause = light
        self._owner_killed = not any(name.startswith("commit.reap") for name in armed)

    def run(self) -> list[str]:
        """To the end of all jobs; what went wrong."""
        plain = self.caller.create(job(name="plain"))
        paused = self.caller.create(job(name="paused"))
        wanted = {plain: "succeeded", paused: "succeeded"}
        if not self._light:
            self.caller.ask("PATCH", f"/v1/jobs/{plain}", body={"name": "changed"})
            wanted[doomed := self.caller.create(job(name="doomed", steps=5000))] = "cancelled"
            wanted[self.caller.create(score_job())] = "succeeded"
        give_up_at = time.monotonic() + PATIENCE_S + PATIENCE_A_POINT_S * len(self._armed)
        while True:
            seen = {job_id: self.caller.get(job_id) for job_id in wanted}
            if all(document["done"] for document in seen.values()):
                break
            if time.monotonic() > give_up_at:
                return [f"stuck: {job_id} is {d['status']}" for job_id, d in seen.items() if not d["done"]]
            self._pause(paused, seen[paused])
            for job_id, status in wanted.items():
                if status == "cancelled" and seen[job_id]["status"] == "running":
                    self.caller.act(job_id, "cancel")
            self._kill_an_owner()
            time.sleep(0.1)
        if not self._light:
            oldest, *_, last = self.caller.ask("GET", f"/v1/jobs/{plain}/checkpoints")["data"]
            self.caller.ask("PATCH", f"/v1/checkpoints/{last['id']}", body={"pinned": True})
            self._delete(f"/v1/checkpoints/{oldest['id']}")
            self._delete(f"/v1/jobs/{doomed}")
            self.promises.created.remove(doomed)
            for made in self.promises.keys.values():
                made.discard(doomed)
            self._expire(paused)
        return [
            f"{job_id} {seen[job_id]['status']}, not {status}: {seen[job_id]['error']}"
            for job_id, status in wanted.items()
            if seen[job_id]["status"] != status
        ]

    def _pause(self, job_id: str, seen: dict[str, object]) -> None:
        progress = seen["progress"]
        assert isinstance(progress, dict)
        if seen["status"] == "paused":
            self.caller.act(job_id, "resume")
        elif seen["status"] == "running" and progress["step"] >= PAUSE_AT_STEP and not self._asked_to_pause:
            self._asked_to_pause = True
            self.caller.act(job_id, "pause")

    def _delete(self, path: str) -> None:
        """Whoever is killed on the way has deleted it or not: a repeat may find nothing."""
        with contextlib.suppress(Refused):
            self.caller.ask("DELETE", path)

    def _expire(self, job_id: str) -> None:
        """Its oldest checkpoint has three seconds. An API looks for such when it starts: one dies for it."""
        oldest = self.caller.ask("GET", f"/v1/jobs/{job_id}/checkpoints")["data"][0]["id"]
        over = datetime.now(UTC) + timedelta(seconds=3)
        self.caller.ask("PATCH", f"/v1/checkpoints/{oldest}", body={"expires_at": over.isoformat()})
        until(lambda: datetime.now(UTC) > over, "three seconds")
        self._cluster.apis[0].kill()
        until(lambda: self._is_gone(f"/v1/checkpoints/{oldest}"), "the end of a checkpoint that has expired")

    def _is_gone(self, path: str) -> bool:
        try:
            self.caller.ask("GET", path)
        except Refused as refused:
            return refused.status == 404
        return False

    def _kill_an_owner(self) -> None:
        """The reaper's points are passed only when somebody's lease runs out."""
        if self._owner_killed or not self._cluster.training():
            return
        for worker in self._cluster.workers:
            for pid in children(worker.pid()) if worker.alive() else []:
                if "worker.app" in command(pid) and children(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    self._owner_killed = True
                    return


def run(
    folder: Path,
    registry: Path,
    armed: Mapping[str, int],
    *,
    postgres: Postgres | None = None,
    weights: str | None = None,
    light: bool = False,
) -> Outcome:
    """One stack with these points armed. `weights`: of the undisturbed run."""
    marks = folder / "marks"
    marks.mkdir(parents=True)
    kill_at = ",".join(f"{name}:{n}" for name, n in armed.items())
    cluster = Cluster(
        folder,
        registry,
        postgres=postgres,
        workers=2,
        env={"KLEASH_KILL_AT": kill_at, "KLEASH_KILL_ONCE": str(marks)},
    )
    with cluster.running():
        scenario = Scenario(cluster, armed, light=light)
        problems = scenario.run()
        scenario.caller.close()
    promises = scenario.promises
    expected = dict.fromkeys(promises.created[:2], weights) if weights is not None else {}
    problems += [*promises.failures, *unasked(promises, read_database(cluster.url).jobs)]
    problems += violations(
        cluster.url,
        cluster.artifacts,
        quiescent=not problems,
        created=promises.created,
        keys=promises.keys,
        weights={job_id: value for job_id, value in expected.items() if value is not None},
        data=cluster.data,
    )
    struck = {path.name: _process(path.read_text()) for path in marks.iterdir()}
    problems += [f"{name}: not reached" for name in armed if name not in struck]
    return Outcome(struck, problems)


def _process(mark: str) -> str:
    """The process that left this mark, in words."""
    for part, name in (("worker/train.py", "training child"), ("celery", "pool child"), ("api", "API")):
        if part in mark:
            return name
    return mark
