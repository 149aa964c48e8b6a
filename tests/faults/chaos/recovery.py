"""How long hit jobs stood still.

A job moves on when a worker claims it, writes for it, or when it ends; if the fault did not end its owner (a
process stood still, a server was restarted), also when the owner renews the lease. And it has its turn again, all
that a fault can have taken from it, when it is queued while every worker has another job.

From a kill the clock runs from the kill; of what was stopped and went on, from there, unless the job had moved on
before. Where a second fault hits a job that has not moved on since the first, only the second is counted.
"""

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from jobs.sql_base import database_url
from tests.faults.chaos.injection import Fault
from tests.faults.checker_rows import Database, JobRows

LOOK_EVERY_S = 0.1
MOVES = {"job.started", "job.resumed_from", "checkpoint.created"}
ENDS = {"job.succeeded", "job.failed", "job.cancelled", "job.paused"}
OWNER_DIES = {"kill celery main", "kill pool child", "kill training child", "kill tree", "terminate worker"}


class Observer:
    """Looks at the rows all the time: when did a job's owner last renew or write?"""

    def __init__(self, url: str) -> None:
        self.renewals: dict[str, set[float]] = defaultdict(set)
        self.writes: dict[str, set[float]] = defaultdict(set)
        self._engine = create_engine(database_url(url))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        query = text("SELECT id, heartbeat_at, progress_at FROM jobs WHERE status = 'running'")
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                with self._engine.connect() as connection:
                    rows = connection.execute(query).all()
            except DBAPIError:
                continue
            for row in rows:
                self.renewals[row.id].add(row.heartbeat_at)
                self.writes[row.id].add(row.progress_at)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._engine.dispose()


def recoveries(
    faults: Sequence[Fault], database: Database, seen: Observer, *, workers: int
) -> Iterator[tuple[Fault, str, float]]:
    """(fault, job, seconds) for every job that a fault hit and that moved again."""
    for i, fault in enumerate(faults):
        for job_id in fault.jobs:
            back = _moves_on(fault, database.jobs[job_id], database, seen, workers)
            again = [f for f in faults[i + 1 :] if (job_id in f.jobs or f.of_all) and f.at < back]
            if back < float("inf") and not again:
                yield fault, job_id, back - (fault.at if back < fault.until else fault.until)


def _moves_on(fault: Fault, job: JobRows, database: Database, seen: Observer, workers: int) -> float:
    kinds = ENDS | MOVES
    moments = [e["created_at"] for e in job.events if e["type"] in kinds]
    moments += _back_in_line(job, database, workers)
    if fault.kind in OWNER_DIES:  # what its owner still wrote is no recovery; steps follow a claim
        moments = [e["created_at"] for e in job.events if e["type"] in ENDS | {"job.started"}]
        moments += _back_in_line(job, database, workers)
    else:
        moments += seen.renewals[job.id] | seen.writes[job.id]
        moments += [row["created_at"] for row in job.metrics]
    return min((moment for moment in moments if moment > fault.at), default=float("inf"))


def _back_in_line(job: JobRows, database: Database, workers: int) -> Iterator[float]:
    """When it was queued again while every worker had another job, or others went first."""
    starts = [e["created_at"] for e in job.events if e["type"] == "job.started"]
    for event in job.events:
        if event["type"] == "job.requeued":
            at = event["created_at"]
            mine = min((start for start in starts if start > at), default=float("inf"))
            runs = [run for other in database.jobs.values() if other.id != job.id for run in _runs(other)]
            busy = sum(begin <= at < end for begin, end in runs)
            if busy >= workers or any(at < begin < mine for begin, _ in runs):
                yield at


def _runs(job: JobRows) -> Iterator[tuple[float, float]]:
    """From claim to release, of each attempt."""
    begin = None
    for event in job.events:
        if event["type"] == "job.started":
            begin = event["created_at"]
        elif begin is not None and event["type"] in ENDS | {"job.requeued"}:
            yield begin, event["created_at"]
            begin = None


def percentile(values: Sequence[float], share: float) -> float | None:
    """By nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, -(-round(share * 100) * len(ranked) // 100) - 1)] if ranked else None
