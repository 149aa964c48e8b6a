"""`python -m tests.contracts.metric_load [--database postgresql]`: what a chart costs among 10 million values.

One job has 100,000 steps × 60 keys, another 70,000. Prints the best of two times of each query, in seconds.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from sqlalchemy import text

from jobs.metric_series import Cursor, SeriesQuery
from jobs.migrate import upgrade
from jobs.schema import job_metrics
from jobs.schema_data import job_metric_keys
from jobs.sql_store import SqlStore
from tests.contracts.store_jobs import create, set_row
from tests.postgres import start_server

KEYS = [f"group{i % 7}/metric_{i:02d}" for i in range(60)]
ROWS = 2000  # inserted at once
QUERIES = {
    "10 keys of what came since": SeriesQuery(patterns=tuple(KEYS[:10]), after=Cursor(99_990, 1)),
    "10 keys of the last 10,000 steps": SeriesQuery(patterns=tuple(KEYS[:10]), from_step=90_001),
    "5 keys of all steps": SeriesQuery(patterns=tuple(KEYS[:5])),
    "60 keys of all steps": SeriesQuery(),
}


def fill(store: SqlStore, job_id: str, steps: int) -> None:
    """Values jump about, so that no two buckets are alike."""
    create(store, job_id)
    with store.writing() as connection:
        for start in range(1, steps + 1, ROWS):
            rows = [
                {
                    "job_id": job_id,
                    "step": step,
                    "metrics": {
                        key: (step * 7919 + i * 104_729) % 99_991 / 99_991 for i, key in enumerate(KEYS)
                    },
                    "timings": {"rollout_s": 1.5},
                    "attempt": 1,
                    "created_at": 1.0,
                }
                for step in range(start, start + ROWS)
            ]
            connection.execute(job_metrics.insert(), rows)
        connection.execute(job_metric_keys.insert(), [{"job_id": job_id, "key": key} for key in KEYS])
    set_row(store, job_id, step=steps, attempt=1)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    database = parser.parse_args().database
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True))
        url = f"sqlite:///{folder}/k.db"
        if database == "postgresql":
            server = start_server(Path(folder, "data"))
            stack.callback(server.cleanup)
            url = server.get_uri()
        upgrade(url)
        store = SqlStore(url)
        stack.callback(store.close)
        fill(store, "job_1", 100_000)
        fill(store, "job_2", 70_000)
        with store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
        for name, query in QUERIES.items():
            took = []
            for _ in range(2):
                began = time.perf_counter()
                store.metric_series("job_1", query)
                took.append(time.perf_counter() - began)
            sys.stdout.write(f"{name:34} {min(took):.3f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
