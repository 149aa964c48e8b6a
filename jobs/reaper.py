"""The reaper: takes jobs from owners that stopped renewing their lease.

It may run in any number of processes: each row goes by one compare-and-set. It knows no broker.
"""

import logging
import threading
from contextlib import suppress

from jobs.errors import JobInUse, JobNotFound, StoreUnavailable
from jobs.files import LocalFiles
from jobs.leftovers import remove_leftovers
from jobs.ports import Files
from jobs.settings import Settings
from jobs.states import Status
from jobs.store import Reaped, Store

log = logging.getLogger(__name__)

FORGET_EVERY_S, DAY_S = 60.0, 86_400.0


class Reaper:
    """One loop. It also removes what had its time: keys, webhook messages, checkpoints, and jobs by retention."""

    def __init__(self, store: Store, settings: Settings, files: Files | None = None) -> None:
        self._store, self._every_s = store, settings.reap_every_s
        self._forget_every = max(1, round(FORGET_EVERY_S / max(self._every_s, 1e-3)))
        self._deliveries_kept_s = settings.webhook_deliveries_kept_s
        self._retention_days = settings.retention_days
        self._files, self._artifacts = files or LocalFiles(), settings.artifacts

    def run_once(self) -> list[Reaped]:
        """Reap what has expired. Raises StoreUnavailable."""
        reaped = self._store.reap()
        for item in reaped:
            log.warning("lease of %s (attempt %d) ran out: now %s", item.job_id, item.attempt, item.status)
            folder = self._artifacts / item.job_id / str(item.attempt)
            remove_leftovers(self._store, self._files, item.job_id, folder)
        return reaped

    def forget(self) -> None:
        """Remove what has had its time, a bounded part of it. Raises StoreUnavailable."""
        self._store.forget_expired_keys()
        self._store.forget_deliveries(older_than_s=self._deliveries_kept_s)
        for checkpoint_id in self._store.expire_checkpoints():
            log.info("%s: deleted, its time is over", checkpoint_id)
        if self._retention_days is None:
            return
        for job_id in self._store.expired_jobs(older_than_s=DAY_S * self._retention_days):
            with suppress(JobNotFound, JobInUse):  # another was faster
                self._store.delete_job(job_id, spare_pinned=True)
                log.info("%s: deleted, over %g days after its end", job_id, self._retention_days)

    def sweep(self) -> None:
        """Clear every ended attempt: whoever should have done it may have died. Raises StoreUnavailable."""
        for folder in sorted(self._artifacts.glob("job_*")):
            try:
                job = self._store.get_job(folder.name)
            except JobNotFound:
                continue
            ended = job.attempt - 1 if job.status is Status.RUNNING else job.attempt
            remove_leftovers(self._store, self._files, job.id, folder / str(ended))

    def run(self, stop: threading.Event) -> None:
        """Sweep once, then reap every `reap_every_s` until `stop` is set."""
        swept, passes = False, 0
        while not stop.is_set():
            try:
                if not swept:
                    self.sweep()
                    swept = True
                self.run_once()
                if passes % self._forget_every == 0:
                    self.forget()
                passes += 1
            except StoreUnavailable as error:
                log.warning("nothing reaped: %s", error)
            stop.wait(self._every_s)
