"""`python -m tests.contracts.idempotency [--keys 200] [--threads 32] [--database sqlite|postgresql]`

So many threads send the same creations with the same keys at the same time, over real HTTP to two replicas of the
API. Each key must make one job, and every answer must be a 201 that names it, or a 409 or 503 that asks for
patience. The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import structlog
import uvicorn
from pydantic import SecretStr

from api.app import create_app
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.faults.model import database

BODY = {
    "type": "score",
    "config": {"items": ["a"], "policy": "base", "reference": "base"},
}
TEMPORARY = {"idempotency_in_progress", "database_unavailable"}


class Outcome(NamedTuple):
    """`jobs`: ids by key; `first`: how many answers said that they had made one; `answers` by status."""

    jobs: dict[str, set[str]]
    first: int
    answers: Counter[int]
    problems: list[str]


@contextmanager
def api(folder: Path, url: str) -> Iterator[str]:
    """A replica on a socket, without broker and scorer."""
    (folder / "models.json").write_text(json.dumps({"models": {"base": {"source": "org/base"}}}))
    settings = Settings(
        database_url=SecretStr(url),
        broker_url=SecretStr(f"redis+socket://{folder}/nowhere.sock"),
        scorer_url=f"unix:{folder}/nowhere.sock",
        data=folder / "data",
        models_file=folder / "models.json",
        unsafe_no_auth=True,
    )
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    store = SqlStore(url)
    config = uvicorn.Config(create_app(settings, store=store), port=0, log_level="critical", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        store.close()
        structlog.reset_defaults()


def race(urls: Sequence[str], *, keys: int, threads: int) -> Outcome:
    """Every thread creates under every key, all of them beginning each key together."""
    jobs: dict[str, set[str]] = defaultdict(set)
    answers: Counter[int] = Counter()
    problems: list[str] = []
    first = [0]
    lock, barrier = threading.Lock(), threading.Barrier(threads)

    def one(number: int) -> None:
        with httpx2.Client(base_url=urls[number % len(urls)], timeout=60, trust_env=False) as client:
            for n in range(keys):
                barrier.wait()
                while True:
                    answer = client.post("/v1/jobs", json=BODY, headers={"Idempotency-Key": f"key-{n}"})
                    document = answer.json()
                    with lock:
                        answers[answer.status_code] += 1
                    if document.get("code") not in TEMPORARY:
                        break
                    time.sleep(0.05)
                with lock:
                    if answer.status_code == 201:
                        jobs[f"key-{n}"].add(document["id"])
                        first[0] += "idempotency-replayed" not in answer.headers
                    else:
                        problems.append(answer.text)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(threads)))
    return Outcome(dict(jobs), first[0], answers, problems)


def faults(outcome: Outcome, store: SqlStore, *, keys: int) -> list[str]:
    """What is wrong with it; empty if each key has made one job."""
    found = [*outcome.problems]
    found += [f"{key} made {sorted(made)}" for key, made in outcome.jobs.items() if len(made) != 1]
    in_all = store.count_jobs()
    if not len(outcome.jobs) == outcome.first == in_all == keys:
        found.append(
            f"{len(outcome.jobs)} keys, {outcome.first} first answers, {in_all} jobs; expected {keys}"
        )
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.contracts.idempotency")
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    began = time.monotonic()
    with ExitStack() as around:
        url = around.enter_context(database(options.database))
        folder = Path(around.enter_context(tempfile.TemporaryDirectory()))
        urls = [around.enter_context(api(folder, url)) for _ in range(2)]
        outcome = race(urls, keys=options.keys, threads=options.threads)
        store = SqlStore(url)
        problems = faults(outcome, store, keys=options.keys)
        store.close()
    for problem in problems:
        sys.stdout.write(f"VIOLATION {problem}\n")
    told = {"posts": sum(outcome.answers.values()), "jobs": len(outcome.jobs), "violations": len(problems)}
    told |= {"answers": dict(outcome.answers), "seconds": round(time.monotonic() - began, 1)}
    sys.stdout.write(json.dumps(vars(options) | told) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
