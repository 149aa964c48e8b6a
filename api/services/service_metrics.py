"""What a dashboard of the service shows: which parts answer, what waits, who works, and what was answered.

All but the requests comes from the database when it is asked for: nothing can go stale, and every replica tells
the same.
"""

from collections import Counter
from collections.abc import Iterator

from api.exposition import Family, Sample
from api.request_counts import RequestCounts
from api.schemas_workers import is_stale
from api.services.readiness import Check
from api.version import VERSION
from jobs.errors import StoreUnavailable
from jobs.store_workers import QueueState, SeenWorker, WorkerStore


def families(store: WorkerStore, requests: RequestCounts, parts: dict[str, Check]) -> Iterator[Family]:
    """Everything; without what the database knows while it does not answer."""
    yield Family("kleash_build_info", "gauge", "Which software answers.", [Sample(1, {"version": VERSION})])
    answering = [Sample(int(state == "ok"), {"part": part}) for part, state in parts.items()]
    yield Family("kleash_part_up", "gauge", "1 if the part answers.", answering)
    yield from requests.families()
    try:
        queue, workers = store.queue_state(), store.list_workers()
    except StoreUnavailable:
        return
    yield from _queue(queue)
    yield from _workers(workers)


def _queue(state: QueueState) -> Iterator[Family]:
    counts = {"queued": sum(state.waiting.values()), "running": state.running, "paused": state.paused}
    jobs = [Sample(count, {"status": status}) for status, count in counts.items()]
    yield Family("kleash_jobs", "gauge", "Jobs that have not ended.", jobs)
    waiting = [Sample(count, {"priority": str(priority)}) for priority, count in state.waiting.items()]
    yield Family("kleash_jobs_queued", "gauge", "Queued jobs by priority.", waiting)
    age = Sample(round(state.oldest_wait_s or 0.0, 3))
    yield Family("kleash_queue_wait_seconds", "gauge", "Of the job that has waited longest.", [age])


def _workers(workers: list[SeenWorker]) -> Iterator[Family]:
    states = Counter("stale" if is_stale(one) else "busy" if one.jobs else "idle" for one in workers)
    found = [Sample(states[state], {"state": state}) for state in ("busy", "idle", "stale")]
    yield Family("kleash_workers", "gauge", "Workers; stale after three missed signs of life.", found)
    ages = [Sample(round(max(one.heartbeat_age_s for one in workers), 3))] if workers else []
    yield Family("kleash_worker_heartbeat_age_seconds", "gauge", "Of the worker longest unheard of.", ages)
