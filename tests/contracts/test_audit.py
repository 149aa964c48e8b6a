"""The audit log in SQLite and PostgreSQL: one chain under concurrent writers; what `verify` finds."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import delete, text, update

from jobs import audit
from jobs.audit import AuditEntry, AuditHead, AuditRow, chained_sha256, violations
from jobs.schema_audit import audit_log
from jobs.settings import Settings
from jobs.sql_store import SqlStore

ENTRY = AuditEntry(
    owner="team",
    key_id="0a1b2c3d",
    operation="jobs_create",
    resource_id="job_1",
    status=201,
    client="10.0.0.7",
    request_id="req_1",
)


def filled(store: SqlStore, rows: int = 5) -> SqlStore:
    for i in range(rows):
        store.record_audit(replace(ENTRY, request_id=f"req_{i}"))
    return store


def test_rows_of_concurrent_writers_are_one_chain(clean: SqlStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: clean.record_audit(replace(ENTRY, request_id=f"req_{i}")), range(40)))
    rows = clean.list_audit()
    assert [row.seq for row in rows] == list(range(1, 41))
    assert {row.entry.request_id for row in rows} == {f"req_{i}" for i in range(40)}
    assert list(violations(clean)) == []
    assert [row.seq for row in clean.list_audit(after=7, limit=2)] == [8, 9]


def test_an_empty_log_is_whole(store: SqlStore) -> None:
    assert list(violations(store)) == []
    assert list(violations(store, AuditHead(1, "ab"))) == ["no row is the one that was noted: 1:ab"]


ROW3 = audit_log.c.seq == 3
TAMPERINGS: dict[str, Any] = {
    f"{name} changed": update(audit_log).where(ROW3).values({name: value})
    for name, value in {
        "at": 1.5,
        "owner": "other",
        "key_id": None,
        "operation": "jobs_cancel",
        "resource_id": "job_2",
        "status": 403,
        "client": "10.0.0.8",
        "request_id": "req_9",
        "sha256": "0" * 64,
    }.items()
} | {
    "first removed": delete(audit_log).where(audit_log.c.seq == 1),
    "middle removed": delete(audit_log).where(ROW3),
    "last removed": delete(audit_log).where(audit_log.c.seq == 5),
    "all removed": delete(audit_log),
    "moved to the end": update(audit_log).where(ROW3).values(seq=6),
    "first removed, the others moved up": [
        delete(audit_log).where(audit_log.c.seq == 1),
        text("UPDATE audit_log SET seq = seq + 100"),
        text("UPDATE audit_log SET seq = seq - 101"),
    ],
    "two exchanged": [
        text("UPDATE audit_log SET seq = 99 WHERE seq = 2"),
        text("UPDATE audit_log SET seq = 2 WHERE seq = 4"),
        text("UPDATE audit_log SET seq = 4 WHERE seq = 99"),
    ],
    "one added": text(
        "INSERT INTO audit_log SELECT 6, at, owner, key_id, operation, resource_id, status, client, request_id,"
        " sha256 FROM audit_log WHERE seq = 5"
    ),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_tampering_with_the_rows_is_found(store: SqlStore, how: str) -> None:
    filled(store)
    assert list(violations(store)) == []
    done = TAMPERINGS[how]
    with store.writing() as connection:
        for statement in done if isinstance(done, list) else [done]:
            connection.execute(statement)
    assert list(violations(store))


def test_a_chain_that_was_forged_whole_is_found_by_an_end_that_was_noted(store: SqlStore) -> None:
    noted = filled(store).audit_head()
    assert list(violations(store, noted)) == []
    store.record_audit(ENTRY)
    assert list(violations(store, noted)) == []  # it may grow
    with store.writing() as connection:
        connection.execute(text("DELETE FROM audit_log"))
        connection.execute(text("DELETE FROM audit_head"))
    for _ in range(8):
        store.record_audit(replace(ENTRY, owner="forger"))
    assert list(violations(store)) == []
    assert list(violations(store, noted)) == [f"no row is the one that was noted: {noted}"]


class ListedLog:
    """A log in memory, to be tampered with many times."""

    def __init__(self, rows: list[AuditRow], head: AuditHead) -> None:
        self.rows, self.head = rows, head

    def record_audit(self, entry: AuditEntry) -> None:
        raise NotImplementedError

    def list_audit(self, *, after: int = 0, limit: int = 3) -> list[AuditRow]:
        return [row for row in self.rows if row.seq > after][:limit]

    def audit_head(self) -> AuditHead:
        return self.head


def written(rows: int) -> ListedLog:
    chain, before = [], audit.GENESIS
    for seq in range(1, rows + 1):
        entry = replace(ENTRY, resource_id=f"job_{seq}", key_id=None if seq % 3 else "ab")
        before = chained_sha256(before, seq, seq / 7, entry)
        chain.append(AuditRow(seq=seq, at=seq / 7, entry=entry, sha256=before))
    return ListedLog(chain, AuditHead(rows, before))


def tampered(log: ListedLog, rng: random.Random) -> None:
    """One change, removal or exchange of rows, with the numbers made to look right."""
    at = rng.randrange(len(log.rows))
    kind = rng.choice(["change", "remove", "exchange", "repeat"])
    if kind == "change":
        name = rng.choice(["owner", "key_id", "operation", "resource_id", "client", "request_id"])
        log.rows[at] = replace(log.rows[at], entry=replace(log.rows[at].entry, **{name: "forged"}))
    elif kind == "remove":
        del log.rows[at]
    elif kind == "exchange":
        other = (at + rng.randrange(1, len(log.rows))) % len(log.rows)
        log.rows[at], log.rows[other] = log.rows[other], log.rows[at]
    else:
        log.rows.insert(at, log.rows[at])
    if rng.random() < 0.5 or kind in ("exchange", "repeat"):
        log.rows = [replace(row, seq=seq) for row, seq in zip(log.rows, count(1), strict=False)]


def test_a_hundred_tamperings_are_found() -> None:
    rng = random.Random(7)
    assert list(violations(written(10))) == []
    for _ in range(100):
        log = written(10)
        tampered(log, rng)
        assert list(violations(log))


def test_the_command_says_what_is_wrong(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(store)
    url = store.engine.url.render_as_string(hide_password=False)
    monkeypatch.setattr("jobs.settings.Settings", lambda: Settings(database_url=SecretStr(url)))
    head = store.audit_head()
    assert audit.main(["verify", "--head", str(head)]) == 0
    assert capsys.readouterr().out == f"5 rows, 0 violations, head {head}\n"
    assert audit.main(["show", "--after", "4"]) == 0
    assert '"request_id": "req_4"' in capsys.readouterr().out
    with store.writing() as connection:
        connection.execute(delete(audit_log).where(ROW3))
    assert audit.main(["verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "VIOLATION rows 3 to 3 are missing",
        "VIOLATION row 4 is not the one that was written",
    ]
