"""Workers and the queue in the database."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, select

from jobs.schema import jobs
from jobs.schema_workers import workers
from jobs.sql_base import SqlBase
from jobs.states import Status
from jobs.store_workers import QueueState, SeenWorker, WorkerCard

FORGOTTEN_AFTER_S = 86_400.0


class WorkerRows(SqlBase):
    """jobs.store_workers.WorkerStore."""

    def record_worker(self, card: WorkerCard) -> None:
        """See jobs.store_workers.WorkerStore."""
        values = asdict(card) | {"queues": list(card.queues), "heartbeat_at": self.now()}
        insert = self.insert(workers).values(**values, started_at=self.now())
        with self.writing() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=[workers.c.id], set_=values))
            connection.execute(delete(workers).where(workers.c.heartbeat_at < self.now() - FORGOTTEN_AFTER_S))

    def forget_worker(self, worker_id: str) -> None:
        """See jobs.store_workers.WorkerStore."""
        with self.writing() as connection:
            connection.execute(delete(workers).where(workers.c.id == worker_id))

    def list_workers(self) -> list[SeenWorker]:
        """See jobs.store_workers.WorkerStore."""
        age_s = (self.now() - workers.c.heartbeat_at).label("heartbeat_age_s")
        running = select(jobs.c.worker, jobs.c.id, jobs.c.owner).where(jobs.c.status == Status.RUNNING)
        claimed: dict[str, list[tuple[str, str]]] = defaultdict(list)
        with self.reading() as connection:
            for job in connection.execute(running.order_by(jobs.c.id)):
                claimed[job.worker].append((job.id, job.owner))
            rows = connection.execute(select(workers, age_s).order_by(workers.c.id)).mappings().all()
        return [_seen(row, claimed) for row in rows]

    def queue_state(self) -> QueueState:
        """See jobs.store_workers.WorkerStore."""
        live = (Status.QUEUED, Status.RUNNING, Status.PAUSED)
        query = (
            select(
                jobs.c.status,
                jobs.c.priority,
                func.count().label("jobs"),
                (self.now() - func.min(jobs.c.queued_at)).label("oldest_s"),
            )
            .where(jobs.c.status.in_(live))
            .group_by(jobs.c.status, jobs.c.priority)
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
        waiting = [row for row in rows if row.status == Status.QUEUED]
        return QueueState(
            waiting={row.priority: row.jobs for row in sorted(waiting, key=lambda row: -row.priority)},
            running=sum(row.jobs for row in rows if row.status == Status.RUNNING),
            paused=sum(row.jobs for row in rows if row.status == Status.PAUSED),
            oldest_wait_s=max((max(0.0, row.oldest_s) for row in waiting), default=None),
        )


def _seen(row: Any, claimed: dict[str, list[tuple[str, str]]]) -> SeenWorker:
    held = tuple(claimed.get(row["id"], ()))
    age_s = max(0.0, row["heartbeat_age_s"])
    return SeenWorker(**dict(row) | {"queues": tuple(row["queues"]), "heartbeat_age_s": age_s, "jobs": held})
