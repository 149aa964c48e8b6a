"""The supervisor: claims a job, starts its training child, keeps the lease, and says how the run ended.

It writes nothing about training: the child does, behind the same fence, and writes `succeeded` itself.
"""

import errno
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from jobs.errors import JobNotFound, LeaseLost, StoreUnavailable
from jobs.faults import point
from jobs.files import LocalFiles
from jobs.leftovers import remove_leftovers
from jobs.ports import Clock, Files
from jobs.settings import REWARD_SECRET, SCORER_TOKEN, Settings
from jobs.spec import Job, JobFailure
from jobs.states import Desired, Status
from jobs.store import Store
from jobs.system import SystemClock
from rlhf_core.config.rewards import urls_of
from worker.child import Child
from worker.failures import EXIT_DISK, EXIT_FAILED, EXIT_STOPPED, EXIT_UNREACHABLE, FULL, HINTS
from worker.shared_gpu import scorers_asleep

log = logging.getLogger(__name__)

TRAIN = (sys.executable, "-m", "worker.train")
TICK_S = 0.2
RETRY_S = 1.0
LEASE_SHARE = 0.8  # of the lease without a renewal: the child must be gone before another owner can start


class Cause(StrEnum):
    """Why the supervisor stopped the child."""

    ASKED = "a client asked for it"
    SHUTDOWN = "its worker is shutting down"
    UNRENEWED = "the lease could not be renewed"
    LOST = "another attempt owns the job"
    STALLED = "it made no progress"
    TIMEOUT = "it ran too long"


KILL_AT_ONCE = frozenset({Cause.LOST, Cause.UNRENEWED})


class Heartbeat:
    """Renews the lease in a thread of its own: a database that hangs must not keep us from the child."""

    def __init__(self, store: Store, job: Job, *, asked_at: float, settings: Settings, clock: Clock) -> None:
        self.job = job  # as last read
        self.renewed_at = asked_at  # when the last renewal that succeeded was asked for
        self.lost = False
        self._store, self._settings, self._clock = store, settings, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No renewal starts after this."""
        self._stop.set()

    def _beat(self) -> None:
        while not self._stop.wait(self._settings.heartbeat_s):
            asked_at = self._clock.monotonic()
            try:
                point("lease.renew.before")
                self.job = self._store.heartbeat(
                    self.job.id, self.job.attempt, lease_s=self._settings.lease_s
                )
                point("lease.renew.after")
                self.renewed_at = asked_at
            except StoreUnavailable as error:
                log.warning("%s: lease not renewed: %s", self.job.id, error)
            except LeaseLost:
                self.lost = True
                return


class Run:
    """One attempt: the child, its heartbeat, and why the child was stopped, if it was."""

    def __init__(
        self, store: Store, child: Child, heart: Heartbeat, *, settings: Settings, clock: Clock
    ) -> None:
        self.child, self.heart = child, heart
        self.cause: Cause | None = None
        self._followed = Desired.RUN  # what a client wanted when the child was last told
        self._store, self._settings, self._clock = store, settings, clock
        self._started_at = self._progress_seen_at = clock.monotonic()
        self._progress_at = heart.job.progress_at
        self._kill_at = float("inf")

    def watch(self) -> int:
        """The child's exit code, after stopping it if there is a cause."""
        while (code := self.child.wait(TICK_S)) is None:
            if self.cause not in KILL_AT_ONCE:
                cause = self._cause()
                if cause is not None and self._is_news(cause):
                    self.stop(cause)
            if self._clock.monotonic() >= self._kill_at:
                self.child.kill()
        unrenewed_s = self._clock.monotonic() - self.heart.renewed_at
        if code == EXIT_UNREACHABLE and self.cause is None and unrenewed_s > self._settings.lease_s / 2:
            self.cause = Cause.UNRENEWED  # the child gave up first
        return code

    def stop(self, cause: Cause) -> None:
        """SIGTERM now and SIGKILL after the grace, or SIGKILL at once."""
        log.info("%s: stopping the child: %s", self.heart.job.id, cause)
        self.cause, self._followed = cause, self.heart.job.desired
        grace_s = self._grace_s(cause)
        self._kill_at = self._clock.monotonic() + grace_s
        if grace_s > 0:
            self.child.terminate()

    def _grace_s(self, cause: Cause) -> float:
        job = self.heart.job
        if cause in KILL_AT_ONCE:
            return 0.0
        if cause is Cause.ASKED and job.desired is Desired.CANCEL:
            if not job.cancel_saves:
                return 0.0
            if job.cancel_grace_s is not None:
                return job.cancel_grace_s
        return self._settings.stop_grace_s

    def _is_news(self, cause: Cause) -> bool:
        """True if the child has to be told: it has not been, or a cancel has come while it obeys a pause."""
        if self.cause is None or cause in KILL_AT_ONCE:
            return True
        paused = self.cause is Cause.ASKED and self._followed is Desired.PAUSE
        return paused and self.heart.job.desired is Desired.CANCEL

    def _cause(self) -> Cause | None:
        now, job = self._clock.monotonic(), self.heart.job
        if job.progress_at != self._progress_at:
            self._progress_at, self._progress_seen_at = job.progress_at, now
        max_runtime_s = job.spec.limits.max_runtime_s
        if self.heart.lost:
            return self._cause_of_loss()
        if now - self.heart.renewed_at > LEASE_SHARE * self._settings.lease_s:
            return Cause.UNRENEWED
        if job.desired is not Desired.RUN:
            return Cause.ASKED
        if now - self._progress_seen_at > self._settings.stall_after_s:
            return Cause.STALLED
        if max_runtime_s is not None and now - self._started_at > max_runtime_s:
            return Cause.TIMEOUT
        return None

    def _cause_of_loss(self) -> Cause | None:
        """A job that this attempt itself has ended is not lost: its child gets the grace to exit."""
        try:
            job = self._store.get_job(self.heart.job.id)
        except (StoreUnavailable, JobNotFound):
            return Cause.LOST
        if job.attempt != self.heart.job.attempt or not job.done:
            return Cause.LOST
        self._kill_at = min(self._kill_at, self._clock.monotonic() + self._settings.stop_grace_s)
        return None


class Supervisor:
    """Runs jobs one after the other. `command` gets the job's id and the attempt as arguments."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        worker: str,
        command: Sequence[str] = TRAIN,
        clock: Clock | None = None,
        files: Files | None = None,
        start_child: Callable[..., Child] = Child,
    ) -> None:
        self._store, self._settings, self._worker = store, settings, worker
        self._command, self._clock = command, clock or SystemClock()
        self._files, self._start_child = files or LocalFiles(), start_child

    def run(self, job_id: str, epoch: int) -> Status | None:
        """The status this run gave the job; None if it was not ours (any more) and nothing was written.

        Raises:
            StoreUnavailable: the job could not be claimed.
            SystemExit: the worker is shutting down; the job has been handed back.
        """
        asked_at = self._clock.monotonic()
        job = self._store.claim(job_id, epoch, worker=self._worker, lease_s=self._settings.lease_s)
        if job is None:
            log.info("%s: a stale message (epoch %d) was dropped", job_id, epoch)
            return None
        trace = "" if job.trace_id is None else f", trace {job.trace_id}"
        log.info("%s: attempt %d%s", job.id, job.attempt, trace)
        heart = Heartbeat(self._store, job, asked_at=asked_at, settings=self._settings, clock=self._clock)
        try:
            with scorers_asleep(self._settings, self._worker):
                return self._run(job, heart)
        except SystemExit:
            # Celery raises it wherever we are when the worker shuts down. A run that is settled is not ours.
            with suppress(LeaseLost, StoreUnavailable):
                self._store.hand_back(job.id, job.attempt, reason=Cause.SHUTDOWN)
            raise
        finally:
            heart.stop()

    def _run(self, job: Job, heart: Heartbeat) -> Status | None:
        folder = self._settings.artifacts / job.id / str(job.attempt)
        try:
            command = [*self._command, job.id, str(job.attempt)]
            child = self._start_child(command, folder, withheld=withheld(job))
        except OSError as error:
            return self._settle(heart, None, *_start_failure(error))
        run = Run(self._store, child, heart, settings=self._settings, clock=self._clock)
        try:
            code = run.watch()
            return self._settle(heart, run.cause, child.failure(code), code)
        except SystemExit:
            run.stop(Cause.SHUTDOWN)
            code = run.watch()
            self._settle(heart, run.cause, child.failure(code), code)
            raise
        finally:
            child.close()
            self._tidy(job.id, folder)

    def _tidy(self, job_id: str, folder: Path) -> None:
        """Nothing but this attempt's child ever wrote there, and it is gone."""
        try:
            remove_leftovers(self._store, self._files, job_id, folder)
        except StoreUnavailable as error:
            log.warning("%s: leftovers stay in %s: %s", job_id, folder, error)

    def _settle(
        self, heart: Heartbeat, cause: Cause | None, failure: JobFailure, code: int | None = None
    ) -> Status | None:
        """Write how the run ended, as long as the lease may still be ours."""
        while cause is not Cause.LOST:
            try:
                return self._write_ending(heart.job, cause, failure, code)
            except (LeaseLost, JobNotFound):  # a client may delete a job as soon as the child has ended it
                break
            except StoreUnavailable as error:
                log.warning("%s: its ending is not written yet: %s", heart.job.id, error)
                if self._clock.monotonic() > heart.renewed_at + self._settings.lease_s:
                    break
                self._clock.wait(RETRY_S)
        log.warning("%s: attempt %d lost its lease", heart.job.id, heart.job.attempt)
        return None

    def _write_ending(self, mine: Job, cause: Cause | None, failure: JobFailure, code: int | None) -> Status:
        job = self._store.get_job(mine.id)
        if job.attempt != mine.attempt or (job.status is not Status.RUNNING and not job.done):
            raise LeaseLost(mine.id)
        if job.done:
            return job.status
        if code in (EXIT_FAILED, EXIT_DISK):
            return self._fail(job, failure)
        if cause is Cause.TIMEOUT:
            detail = f"The run took longer than limits.max_runtime_s = {job.spec.limits.max_runtime_s:g}."
            return self._fail(
                job, replace(failure, code="timeout", detail=detail, hint=HINTS["timeout"], step=job.step)
            )
        if cause is Cause.STALLED:
            detail = f"The run made no progress for {self._settings.stall_after_s:g} s."
            failure = replace(failure, code="stalled", detail=detail, hint=HINTS["stalled"], step=job.step)
        elif cause is not None:
            return self._store.hand_back(job.id, job.attempt, reason=cause)
        elif code == EXIT_STOPPED:
            failure = replace(failure, detail="The training process stopped, and nobody had asked it to.")
        elif code == 0:
            return self._fail(job, failure)
        if job.desired is not Desired.CANCEL and job.crash_count + 1 >= job.spec.limits.max_attempts:
            return self._fail(job, failure)
        return self._store.hand_back(job.id, job.attempt, reason=failure.code, crashed=True)

    def _fail(self, job: Job, failure: JobFailure) -> Status:
        self._store.finish(job.id, job.attempt, Status.FAILED, error=failure)
        return Status.FAILED


def withheld(job: Job) -> frozenset[str]:
    """The variables that the job's child has no use for: it asks no scorer, and few ask an endpoint."""
    if job.spec.type == "ppo":
        gold = job.ppo.evaluation.gold_reward
        if urls_of(job.ppo.reward) or (gold is not None and urls_of(gold)):
            return SCORER_TOKEN
    return SCORER_TOKEN | REWARD_SECRET


def _start_failure(error: OSError) -> tuple[JobFailure, int | None]:
    """What it means that there is no child, and the exit code that a child would have told it with."""
    detail = f"The training process could not be started: {error}"
    if error.errno in FULL:
        return JobFailure(code="disk_full", detail=detail, hint=HINTS["disk_full"]), EXIT_DISK
    if error.errno == errno.EROFS:
        return JobFailure(code="storage_failed", detail=detail, hint=HINTS["storage_failed"]), EXIT_DISK
    return JobFailure(code="crashed", detail=detail, hint=HINTS["crashed"]), None
