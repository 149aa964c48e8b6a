"""The invariant checker on a score job: a healthy history, then broken by hand."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs.bulk import RESULTS
from jobs.migrate import upgrade
from jobs.spec import JOB_SPEC, NewShard
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.faults.checker import violations

SPEC = JOB_SPEC.validate_python(
    {"type": "score", "config": {"items": ["a", "b", "c"], "checkpoint": {"every_items": 2}}}
)


class Site:
    """Three items in shards of two, the second made by a second attempt."""

    def __init__(self, folder: Path) -> None:
        self.url, self.artifacts = f"sqlite:///{folder}/kleash.db", folder / "jobs"
        upgrade(self.url)
        self.store = SqlStore(self.url)
        self.store.create_job("job_1", "me", SPEC, {})
        for index in (0, 1):
            job = self.store.claim("job_1", index + 1, worker="w", lease_s=60)
            assert job is not None
            self.save(index, job.attempt)
            if index == 0:
                self.store.hand_back("job_1", job.attempt, reason="lost", crashed=True)
        self.store.finish("job_1", job.attempt, Status.SUCCEEDED, result={})

    def save(self, index: int, attempt: int) -> None:
        path, content = f"job_1/{attempt}/results-{index:06d}", f'{{"index": {index}}}\n'.encode()
        (self.artifacts / path).mkdir(parents=True)
        (self.artifacts / path / RESULTS).write_bytes(content)
        sha256 = hashlib.sha256(content).hexdigest()
        shard = NewShard(
            index=index, items=2 - index, path=path, sha256=sha256, bytes=len(content), cursor={}
        )
        counted = {"items_total": 3.0, "items_done": 2.0 + index}
        self.store.record_shard("job_1", attempt, shard, metrics=counted, timings={"tokens_per_s": 5.0})

    def found(self) -> set[str]:
        return {line.split()[0] for line in violations(self.url, self.artifacts, created=["job_1"])}

    def sql(self, statement: str) -> None:
        with self.store.writing() as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize(
    ("harm", "invariants"),
    [
        (lambda site: None, set()),
        (lambda site: (site.artifacts / "job_1/1/results-000000" / RESULTS).write_text("{}\n"), {"I9"}),
        (lambda site: (site.artifacts / "job_1/2/results-000001" / RESULTS).unlink(), {"I9"}),
        (lambda site: site.sql('DELETE FROM job_shards WHERE "index" = 0'), {"I9", "I10"}),
        (lambda site: (site.artifacts / "job_1/1/results-000001.partial").mkdir(), {"I10"}),
        (lambda site: site.sql("UPDATE job_shards SET created_at = 1"), {"I4"}),
        (lambda site: site.sql("DELETE FROM job_metrics WHERE step = 2"), {"I5"}),
        (lambda site: site.sql("UPDATE jobs SET step = 1"), {"I5"}),
    ],
)
def test_what_is_wrong_with_shards_is_found(
    tmp_path: Path, harm: Callable[[Site], object], invariants: set[str]
) -> None:
    site = Site(tmp_path)
    harm(site)
    assert site.found() == invariants
    site.store.close()
