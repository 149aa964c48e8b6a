"""The steady load of a round: jobs that must end equal, jobs that are cancelled or paused, and polls."""

import random
import threading
import time
from typing import Any

from tests.faults.callers import Caller, NobodyAnswers, Refused
from tests.faults.work import job

POLL_EVERY_S = 0.05
PATHS = ("", "", "/events", "/metrics", "/frontier", "/checkpoints", "/samples")


class Load:
    """One thread polls; one creates, and acts on what it created. `ids` are all jobs of the round."""

    def __init__(self, caller: Caller, rng: random.Random, *, jobs: int, pauses: bool) -> None:
        self.ids: list[str] = []
        self.steps: dict[str, int] = {}  # as last polled
        self.cancelled: set[str] = set()
        self.problems: list[str] = []
        self._caller, self._rng, self._jobs, self._pauses = caller, rng, jobs, pauses
        self._stop = threading.Event()
        self._poll_rng = random.Random(rng.random())
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._poll, self._act)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Everything that was to be created has been; no more polls."""
        self._threads[1].join()
        self._stop.set()
        self._threads[0].join()

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except (Refused, NobodyAnswers) as error:
            self.problems.append(f"{type(error).__name__}: {error}")

    def _poll(self) -> None:
        while not self._stop.wait(POLL_EVERY_S):
            if not self.ids:
                self._caller.ask("GET", "/v1/jobs")
                continue
            job_id, part = self._poll_rng.choice(self.ids), self._poll_rng.choice(PATHS)
            seen = self._caller.ask("GET", f"/v1/jobs/{job_id}{part}")
            if not part:
                self.steps[job_id] = seen["progress"]["step"]

    def _act(self) -> None:
        doomed_at = self._rng.randrange(self._jobs)
        for i in range(self._jobs):
            key = f"key-{self._rng.getrandbits(64):x}"
            spec = job(name=f"chaos-{i}")
            self.ids.append(self._caller.create(spec, key=key))
            if self._rng.random() < 0.3:
                self._caller.create(spec, key=key)  # the same, asked twice
            if i == doomed_at:
                doomed = self._caller.create(job(name="doomed", steps=2000))
                self.ids.append(doomed)
                self.cancelled.add(doomed)
            time.sleep(self._rng.uniform(0, 1))
        if self._pauses:
            self._pause(self._rng.choice([job_id for job_id in self.ids if job_id != doomed]))
        time.sleep(self._rng.uniform(0, 6))
        self._caller.act(doomed, "cancel")

    def _pause(self, job_id: str) -> None:
        time.sleep(self._rng.uniform(0, 6))
        if self._caller.act(job_id, "pause") == 200:
            time.sleep(self._rng.uniform(0, 3))
            self._caller.act(job_id, "resume")

    def settle(self, *, patience_s: float) -> list[str]:
        """Resume what is paused and wait until all jobs have ended; those that did not, as `id: status`."""
        give_up_at = time.monotonic() + patience_s
        open_jobs = dict.fromkeys(self.ids, "?")
        while open_jobs and time.monotonic() < give_up_at:
            for job_id in list(open_jobs):
                seen = self._caller.get(job_id)
                open_jobs[job_id] = seen["status"]
                if seen["done"]:
                    del open_jobs[job_id]
                elif seen["status"] == "paused":
                    self._caller.act(job_id, "resume")
            time.sleep(0.2)
        return [f"{job_id}: {status}" for job_id, status in open_jobs.items()]
