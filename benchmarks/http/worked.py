"""Jobs that this process runs as a worker would, through the store, with nothing to compute: events at will."""

import contextlib
import uuid
from collections.abc import Iterator

from benchmarks.http.polls import TRAINING
from benchmarks.http.service import Service
from jobs.keys import FIRST_OWNER
from jobs.spec import NewEvent, PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Status

LEASE_S = 3600.0


class WorkedJob:
    """A running job. Its events so far: created, started."""

    def __init__(self, store: SqlStore) -> None:
        spec, job_id = PPOSpec.model_validate(TRAINING), f"job_{uuid.uuid4().hex}"
        job = store.create_job(job_id, FIRST_OWNER, spec, {}).job
        claimed = store.claim(job.id, job.epoch, worker="benchmark", lease_s=LEASE_S)
        if claimed is None:
            raise RuntimeError("a worker of the service was faster; try again")
        self._store, self.id, self._attempt = store, job.id, claimed.attempt

    def note(self) -> None:
        """One more event."""
        self._store.add_event(self.id, self._attempt, NewEvent(type="note", message="as a worker writes it"))

    def end(self) -> None:
        """The last event."""
        self._store.finish(self.id, self._attempt, Status.SUCCEEDED)

    def events(self) -> int:
        """How many there are."""
        return self._store.job_versions([self.id])[self.id].event_seq


@contextlib.contextmanager
def working(service: Service) -> Iterator[SqlStore]:
    """The service's own database."""
    store = SqlStore(service.database)
    try:
        yield store
    finally:
        store.close()
