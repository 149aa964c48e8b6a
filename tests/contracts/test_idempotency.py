"""A small share of `python -m tests.contracts.idempotency`, on SQLite and on PostgreSQL."""

from pathlib import Path

from jobs.sql_store import SqlStore
from tests.contracts.idempotency import api, faults, race


def test_each_key_makes_one_job_over_http(clean: SqlStore, tmp_path: Path) -> None:
    url = clean.engine.url.render_as_string(hide_password=False)
    with api(tmp_path, url) as first, api(tmp_path, url) as second:
        outcome = race([first, second], keys=4, threads=8)
    assert faults(outcome, clean, keys=4) == []
    assert outcome.answers[201] == 32
