"""The migrations make the tables of jobs.schema, on SQLite and PostgreSQL, also when several run at once."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from jobs import keys
from jobs.migrate import ensure_first_key, upgrade
from jobs.schema import metadata
from jobs.sql_store import SqlStore


def test_the_migrated_schema_is_the_declared_one(database: SqlStore) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_an_upgrade_of_the_newest_schema_changes_nothing(clean: SqlStore) -> None:
    clean.create_key("id", "hash", keys.Grant(owner="o", name="n", scopes=frozenset({"score"})))
    upgrade(clean.engine.url.render_as_string(hide_password=False))
    assert clean.key_in_force("id") == ("hash", "o", {"score"}, None)


def test_a_stack_that_starts_three_times_at_once_has_one_schema_and_one_key(
    new_postgres_database: Callable[[str], str], tmp_path: Path
) -> None:
    for url in (f"sqlite:///{tmp_path}/a b %20/k.db", new_postgres_database("at_once")):
        file = tmp_path / url[:6] / "key"
        command = [sys.executable, "-m", "jobs.migrate", "--first-key", str(file)]
        environment = os.environ | {"KLEASH_DATABASE_URL": url}
        processes = [subprocess.Popen(command, env=environment) for _ in range(3)]
        assert [process.wait() for process in processes] == [0] * 3
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert [path.name for path in file.parent.iterdir() if "key" in path.name] == ["key"]
        store = SqlStore(url)
        assert keys.verify(store, file.read_text().strip())
        assert set(inspect(store.engine).get_table_names()) == {*metadata.tables, "alembic_version"}
        store.close()


def test_a_key_file_survives_its_database(clean: SqlStore, tmp_path: Path) -> None:
    file = tmp_path / "key"
    ensure_first_key(clean, file)
    text = file.read_text().strip()
    assert keys.verify(clean, text)
    other = SqlStore(f"sqlite:///{tmp_path}/new.db")
    upgrade(f"sqlite:///{tmp_path}/new.db")
    assert keys.verify(other, text) is None
    ensure_first_key(other, file)
    assert keys.verify(other, text)
    assert file.read_text().strip() == text
    other.close()


def test_a_file_with_something_else_is_left_alone(clean: SqlStore, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("my shopping list")
    with pytest.raises(ValueError, match="does not hold a key"):
        ensure_first_key(clean, file)
    assert file.read_text() == "my shopping list"
