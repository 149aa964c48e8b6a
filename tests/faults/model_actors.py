"""Who acts in a random history of jobs, and what is then in the database."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import select

from jobs.schema import job_checkpoints, job_events, job_metrics, job_samples, jobs
from jobs.sql_store import SqlStore


class VirtualClock:
    """Stands in for the database's clock."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


class LateReaper(SqlStore):
    """A reaper that has looked and is stopped before it acts."""

    def look(self) -> list[tuple[str, int]]:
        """The runs whose lease had run out."""
        self._seen: list[tuple[str, int]] = []
        self.reap()
        return self._seen

    def act(self, job_id: str, attempt: int) -> Any:
        """What it would have done at once."""
        return super()._reap_one(job_id, attempt)

    def _reap_one(self, job_id: str, attempt: int) -> None:
        self._seen.append((job_id, attempt))


@dataclass
class Worker:
    """One attempt, for ever: it writes whether or not it still owns the job. `step`: done in its memory."""

    job_id: str
    attempt: int
    step: int


class Save(NamedTuple):
    """A checkpoint that a job may go on from."""

    job_id: str
    name: str
    step: int
    attempt: int

    @property
    def sha256(self) -> str:
        """Of its manifest: another one for each attempt."""
        return f"{self.attempt:064x}"

    @property
    def path(self) -> str:
        """Of its folder."""
        return f"{self.job_id}/{self.attempt}/{self.name}"

    def resolved(self) -> dict[str, object]:
        """As the API hands it to the store."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "step": self.step,
            "job_id": self.job_id,
            "name": self.name,
        }


HIDDEN = {
    "id",
    "owner",
    "spec",
    "resolved",
    "trace_id",
    "max_attempts",
    "priority",
}  # the request, as it was,
HIDDEN |= {"type", "name", "metadata"}  # and as it has been changed


def read(store: SqlStore) -> dict[str, dict[str, Any]]:
    """Every row of every job, as the model writes it."""
    with store.reading() as connection:
        found: dict[str, dict[str, Any]] = {}
        for row in connection.execute(select(jobs)).mappings():
            values = {name: row[name] for name in row if name not in HIDDEN}
            values["error"] = row["error"] and row["error"]["code"]
            found[row["id"]] = {"row": values, "events": [], "metrics": [], "samples": [], "checkpoints": []}
        for item in connection.execute(select(job_events).order_by(job_events.c.seq)):
            found[item.job_id]["events"].append((item.seq, item.type, item.attempt))
        for item in connection.execute(select(job_metrics).order_by(job_metrics.c.step)):
            found[item.job_id]["metrics"].append((item.step, item.metrics["value"], item.attempt))
        for item in connection.execute(select(job_samples).order_by(job_samples.c.step)):
            found[item.job_id]["samples"].append((item.step, item.completion))
        for item in connection.execute(select(job_checkpoints).order_by(job_checkpoints.c.name)):
            found[item.job_id]["checkpoints"].append((item.name, item.step, item.attempt, item.pinned))
    return found
