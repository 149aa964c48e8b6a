"""The invariant checker finds what is wrong, and nothing else: one healthy history, broken by hand one by one."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from jobs.schema import jobs
from jobs.spec import JobFailure, PPOSpec
from jobs.sql_store import SqlStore
from jobs.states import Action, Status
from tests.faults.checker import changed, freeze, violations
from tests.faults.checker_files import weights_sha256

SPEC = PPOSpec.model_validate_json(
    """{"limits": {"max_attempts": 2},
        "config": {"model": {"name": "m"}, "data": {"prompts": ["a"]}, "reward": {"kind": "length",
                   "target_tokens": 3}, "optimization": {"steps": 3}}}"""
)
KILLED, WHOLE, CANCELLED, FAILED = "job_killed", "job_whole", "job_cancelled", "job_failed"
CREATED = [KILLED, WHOLE, CANCELLED, FAILED]


@dataclass
class Site:
    """A history, its clock and its files."""

    store: SqlStore
    clock: Any
    artifacts: Path

    @property
    def url(self) -> str:
        return self.store.engine.url.render_as_string(hide_password=False)

    def sql(self, *statements: str) -> None:
        with self.store.writing() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def found(self, **options: Any) -> list[str]:
        return violations(self.url, self.artifacts, created=CREATED, **options)

    def create(self, job_id: str) -> None:
        self.store.create_job(
            job_id, "me", SPEC, {"model": {"path": "/m"}}, idempotency_key=job_id, request_sha256="s"
        )

    def claim(self, job_id: str) -> int:
        job = self.store.claim(job_id, self.store.get_job(job_id).epoch, worker="w", lease_s=30)
        assert job is not None
        return job.attempt

    def save(self, job_id: str, attempt: int, name: str, step: int) -> None:
        folder = self.artifacts / job_id / str(attempt) / name
        manifest_sha256 = write_folder(folder, f"weights of step {step}")
        self.store.record_checkpoint(
            job_id, attempt, name=name, step=step, path=str(folder), sha256=manifest_sha256, size=1
        )

    def step(self, job_id: str, attempt: int, step: int) -> None:
        self.clock.time += 1
        self.store.record_step(job_id, attempt, step=step, metrics={"loss": 1 / step}, timings={})


def write_folder(folder: Path, weights: str) -> str:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(weights)
    sha256 = hashlib.sha256(weights.encode()).hexdigest()
    manifest = json.dumps({"files": {"adapter_model.safetensors": {"sha256": sha256}}}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    return hashlib.sha256(manifest).hexdigest()


@pytest.fixture
def site(store: SqlStore, clock: Any, tmp_path: Path) -> Site:
    """A job that was killed at step 2 and went on from step 1, one that ran through, one cancelled, one failed."""
    site = Site(store, clock, tmp_path)
    for job_id in CREATED:
        site.create(job_id)
    first = site.claim(KILLED)
    site.step(KILLED, first, 1)
    site.save(KILLED, first, "step-1", 1)
    site.step(KILLED, first, 2)
    clock.time += 31
    assert [item.job_id for item in store.reap()] == [KILLED]
    clock.time += 1
    for job_id, steps in ((KILLED, (2, 3)), (WHOLE, (1, 2, 3))):
        attempt = site.claim(job_id)
        for step in steps:
            site.step(job_id, attempt, step)
        site.save(job_id, attempt, "final", 3)
        store.finish(job_id, attempt, Status.SUCCEEDED, result={"model": "m"})
        clock.time += 1
    store.request(CANCELLED, Action.CANCEL)
    attempt = site.claim(FAILED)
    site.step(FAILED, attempt, 1)
    store.finish(FAILED, attempt, Status.FAILED, error=JobFailure(code="nan_loss", detail="NaN"))
    return site


def test_a_healthy_history_has_no_violation(site: Site) -> None:
    weights = {KILLED: weights_sha256(site.artifacts / KILLED / "2" / "final")}
    assert site.found(weights=weights, keys={"k": [KILLED, KILLED]}) == []


def test_a_live_job_is_no_violation_while_the_service_lives(site: Site) -> None:
    site.create("job_live")
    attempt = site.claim("job_live")
    site.step("job_live", attempt, 1)
    write_folder(site.artifacts / "job_live" / "1" / "step-1.partial", "w")
    assert site.found(quiescent=False) == []
    assert site.found() == ["I10 job_live: still running"]


EVENT = "WHERE job_id = 'job_killed' AND seq"
SWAP = [  # checkpoint.created before job.started
    f"UPDATE job_events SET seq = 99 {EVENT} = 2",
    f"UPDATE job_events SET seq = 2 {EVENT} = 3",
    f"UPDATE job_events SET seq = 3 {EVENT} = 99",
]
BREAKS: list[tuple[str, list[str]]] = [
    ("I1", [
        "DELETE FROM jobs WHERE id = 'job_cancelled'",
        "DELETE FROM idempotency_keys WHERE key = 'job_cancelled'",
    ]),
    ("I2", ["UPDATE idempotency_keys SET resource_id = 'job_whole' WHERE key = 'job_killed'"]),
    ("I2", ["UPDATE idempotency_keys SET resource_id = 'job_gone' WHERE key = 'job_killed'"]),
    ("I2", ["UPDATE idempotency_keys SET owner = 'them' WHERE key = 'job_killed'"]),
    ("I3", ["UPDATE jobs SET status = 'cancelled', error = NULL WHERE id = 'job_failed'"]),
    ("I3", ["UPDATE jobs SET result = NULL WHERE id = 'job_killed'"]),
    ("I3", ["UPDATE jobs SET finished_at = NULL WHERE id = 'job_killed'"]),
    ("I3", ["UPDATE jobs SET error = '{\"code\": \"c\", \"detail\": \"d\"}' WHERE id = 'job_killed'"]),
    ("I3", ["UPDATE jobs SET worker = 'w' WHERE id = 'job_killed'"]),
    ("I3", ["UPDATE jobs SET status = 'lost' WHERE id = 'job_cancelled'"]),
    ("I3", [f"UPDATE job_events SET type = 'job.paused' {EVENT} = 4"]),
    ("I3", [f"UPDATE job_events SET type = 'job.cancelling' {EVENT} = 3"]),
    ("I3", [f"UPDATE job_events SET type = 'job.succeeded' {EVENT} = 4"]),
    ("I4", ["UPDATE job_metrics SET attempt = 1 WHERE job_id = 'job_killed' AND step = 3"]),
    ("I4", ["UPDATE job_metrics SET attempt = 9 WHERE job_id = 'job_killed' AND step = 3"]),
    ("I4", ["UPDATE job_metrics SET created_at = created_at + 99 WHERE job_id = 'job_killed' AND step = 1"]),
    ("I4", ["UPDATE job_checkpoints SET attempt = 2 WHERE job_id = 'job_killed' AND name = 'step-1'"]),
    ("I4", [f"UPDATE job_events SET attempt = 1 {EVENT} = 6"]),
    ("I4", ["UPDATE jobs SET attempt = 7 WHERE id = 'job_killed'"]),
    ("I5", ["DELETE FROM job_metrics WHERE job_id = 'job_killed' AND step = 2"]),
    ("I5", ["DELETE FROM job_metrics WHERE job_id = 'job_killed' AND step = 1"]),
    ("I5", ["UPDATE jobs SET latest = '{\"loss\": 7}' WHERE id = 'job_failed'"]),
    ("I5", ["UPDATE jobs SET latest = '{\"loss\": 0.5}', step = 2 WHERE id = 'job_killed'"]),
    ("I7", ["UPDATE jobs SET error = '{\"code\": \"\", \"detail\": \"d\"}' WHERE id = 'job_failed'"]),
    ("I7", ["UPDATE jobs SET crash_count = 3 WHERE id = 'job_killed'"]),
    ("I8", [
        f"UPDATE job_events SET seq = 99 {EVENT} = 7",
        "UPDATE jobs SET event_seq = 99 WHERE id = 'job_killed'",
    ]),
    ("I8", ["UPDATE jobs SET event_seq = 99 WHERE id = 'job_killed'"]),
    ("I9", ["UPDATE job_checkpoints SET sha256 = 'ff' WHERE job_id = 'job_killed' AND name = 'step-1'"]),
    ("I10", ["UPDATE jobs SET lease_until = 1 WHERE id = 'job_killed'"]),
    ("I10", ["DELETE FROM job_checkpoints WHERE job_id = 'job_killed' AND name = 'step-1'"]),
]  # fmt: skip


@pytest.mark.parametrize(("invariant", "statements"), BREAKS, ids=lambda value: str(value)[:70])
def test_each_break_in_the_rows_is_its_own_violation(
    site: Site, invariant: str, statements: list[str]
) -> None:
    site.sql(*statements)
    found = site.found()
    assert found
    assert {line.split()[0] for line in found} == {invariant}, found


def flip(site: Site) -> None:
    file = site.artifacts / KILLED / "1" / "step-1" / "adapter_model.safetensors"
    file.write_text(file.read_text().replace("1", "0"))


FILE_BREAKS: dict[str, tuple[str, Callable[[Site], object]]] = {
    "flipped": ("I9", flip),
    "gone": ("I9", lambda s: shutil.rmtree(s.artifacts / KILLED / "1" / "step-1")),
    "partial": ("I10", lambda s: (s.artifacts / KILLED / "1" / "step-2.partial").mkdir()),
    "set aside": ("I10", lambda s: (s.artifacts / WHOLE / "1" / ".final.replaced").mkdir()),
    "nameless": ("I10", lambda s: write_folder(s.artifacts / KILLED / "1" / "step-2", "w")),
}


@pytest.mark.parametrize("name", FILE_BREAKS)
def test_each_break_in_the_files_is_its_own_violation(site: Site, name: str) -> None:
    invariant, break_it = FILE_BREAKS[name]
    break_it(site)
    found = site.found()
    assert found
    assert {line.split()[0] for line in found} == {invariant}, found


def test_what_the_last_attempt_of_a_job_that_failed_left_is_nobodys_duty(site: Site) -> None:
    write_folder(site.artifacts / FAILED / "1" / "step-1.partial", "w")
    assert site.found() == []
    site.sql("UPDATE job_metrics SET attempt = 2 WHERE job_id = 'job_failed'")
    assert "I10 job_failed: 1/step-1.partial is left behind" in site.found()


def test_other_weights_than_the_undisturbed_runs(site: Site) -> None:
    assert [line.split()[:2] for line in site.found(weights={WHOLE: "ff"})] == [["I6", f"{WHOLE}:"]]


def test_other_weights_than_those_of_the_same_configuration(site: Site) -> None:
    folder = site.artifacts / WHOLE / "1" / "final"
    shutil.rmtree(folder)
    site.sql(
        f"UPDATE job_checkpoints SET sha256 = '{write_folder(folder, 'other')}' WHERE job_id = '{WHOLE}'"
    )
    assert [line.split()[:2] for line in site.found()] == [["I6", f"{WHOLE}:"]]


def test_two_jobs_for_one_key(site: Site) -> None:
    assert [line.split()[0] for line in site.found(keys={"k": [KILLED, WHOLE]})] == ["I2"]


def test_crashes_without_a_checkpoint_in_between_are_bounded(site: Site) -> None:
    site.create("job_loop")
    for _ in range(2):
        attempt = site.claim("job_loop")
        site.store.hand_back("job_loop", attempt, reason="r")
    site.sql(
        "UPDATE job_events SET data = '{\"crashed\": true}' WHERE job_id = 'job_loop' AND type = 'job.requeued'"
    )
    assert [line.split()[:2] for line in site.found()] == [["I7", "job_loop:"]]


def test_metric_rows_are_unique_even_without_the_primary_key(site: Site, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/copy.db"
    engine = create_engine(url)
    with site.store.reading() as source, engine.begin() as copy:
        tables = ["jobs", "job_events", "job_metrics", "job_checkpoints", "job_shards", "idempotency_keys"]
        tables.append("deleted_folders")
        for table in tables:
            found = source.execute(text(f"SELECT * FROM {table}")).mappings()
            names, rows = [f'"{name}"' for name in found.keys()], [dict(row) for row in found]  # noqa: SIM118
            copy.execute(text(f"CREATE TABLE {table} ({', '.join(names)})"))
            if not rows:
                continue
            rows = [
                {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
                for row in rows
            ]
            copy.execute(
                text(f"INSERT INTO {table} VALUES ({', '.join(':' + name for name in rows[0])})"), rows
            )
    assert violations(url, site.artifacts) == []
    with engine.begin() as copy:
        copy.execute(text("INSERT INTO job_metrics SELECT * FROM job_metrics WHERE step = 3"))
    engine.dispose()
    assert {line.split()[0] for line in violations(url, site.artifacts)} == {"I5"}


def test_what_has_ended_never_changes(site: Site) -> None:
    frozen = freeze(site.url)
    assert set(frozen) == set(CREATED)
    assert changed(frozen, site.url) == []
    site.sql(
        "UPDATE jobs SET result = '{\"model\": \"x\"}' WHERE id = 'job_killed'",
        "UPDATE job_metrics SET metrics = '{}' WHERE job_id = 'job_whole' AND step = 1",
        "UPDATE jobs SET status = 'queued' WHERE id = 'job_cancelled'",
        "DELETE FROM job_events WHERE job_id = 'job_failed' AND seq = 1",
    )
    assert changed(frozen, site.url) == [
        "I3 job_cancelled: cancelled, and then queued",
        "I3 job_failed: its events changed after it had ended",
        "I3 job_killed: its row changed after it had ended",
        "I3 job_whole: its metrics changed after it had ended",
    ]


def test_a_transaction_that_stays_open(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.checker_rows.LONGEST_TRANSACTION_S", 0)
    with site.store.engine.connect() as connection:
        connection.execute(jobs.select())  # begins
        found = site.found()
    assert [line.split()[0] for line in found] == ["I10"], found
    assert site.found() == []
