"""Lists by any filters at once are what a slow look at every job finds, page after page."""

import random

from sqlalchemy import insert

from jobs.schema_jobs import job_labels, label_of
from jobs.sql_store import SqlStore
from jobs.states import Desired, Status, public_status
from jobs.store_jobs import JobFilter
from tests.contracts.store_jobs import create, set_row

NAMES = ("queued", "running", "pausing", "cancelling", "paused", "succeeded", "failed", "cancelled")
PAIRS = (("colour", "red"), ("size", "s"), ("host", "a"))


def test_any_filters_at_once_find_what_a_look_at_every_job_does(store: SqlStore) -> None:
    rng = random.Random(0)
    kept: dict[str, tuple[str, set[tuple[str, str]]]] = {}
    for number in range(30):
        job_id = f"job_{number:02d}"
        create(store, job_id)
        status, desired = rng.choice(list(Status)), rng.choice(list(Desired))
        set_row(store, job_id, status=status, desired=desired)
        pairs = {pair for pair in PAIRS if rng.random() < 0.6}
        kept[job_id] = public_status(status, desired), pairs
        for owner in ("me", "another")[: rng.randint(1, 2)]:  # a label of another owner finds nothing of mine
            mine = pairs if owner == "me" else set(PAIRS)
            rows = [{"owner": owner, "label": label_of(*pair), "job_id": job_id} for pair in mine]
            if rows:
                with store.writing() as connection:
                    connection.execute(insert(job_labels), rows)
    for _ in range(60):
        statuses = rng.sample(NAMES, rng.choice([0, 0, 1, 2, 8]))
        asked = rng.sample(PAIRS, rng.choice([0, 1, 2, 3]))
        where, oldest_first = JobFilter(statuses=statuses, metadata=dict(asked)), rng.random() < 0.5
        expected = sorted(
            (
                job_id
                for job_id, (status, pairs) in kept.items()
                if (not statuses or status in statuses) and pairs.issuperset(asked)
            ),
            reverse=not oldest_first,
        )
        assert store.count_jobs(owner="me", where=where) == len(expected)
        limit, found, after = rng.randint(1, 9), list[str](), None
        while True:
            page = store.list_versions(
                owner="me", where=where, after=after, oldest_first=oldest_first, limit=limit
            )
            full = store.list_jobs(
                owner="me", where=where, after=after, oldest_first=oldest_first, limit=limit
            )
            assert [job.id for job in full] == [job.id for job in page]
            found += [job.id for job in page]
            if len(page) < limit:
                break
            after = page[-1].id
        assert found == expected
        assert store.count_jobs(owner="nobody", where=where) == 0
