"""`python -m jobs.migrate [--first-key FILE]`: create or upgrade the schema; safe when several run at once."""

import argparse
import os
import secrets
from contextlib import suppress
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from jobs.faults import point
from jobs.keys import ALL_SCOPES, FIRST_OWNER, Grant, new_key, parse
from jobs.settings import settings_or_exit
from jobs.sql_base import database_url, make_engine
from jobs.sql_store import SqlStore
from jobs.system import SystemRng

MIGRATIONS = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x6B6C65617368  # "kleash"
LOCK_WAIT_S = 60.0


def upgrade(url: str, revision: str = "head") -> None:
    """Bring the schema to a version, the newest by default, in one transaction that others wait for."""
    parsed = database_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = make_engine(url, lock_wait_s=LOCK_WAIT_S)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            point("commit.upgrade.before")
        point("commit.upgrade.after")
    finally:
        engine.dispose()


def ensure_first_key(store: SqlStore, file: Path) -> None:
    """Make `file` (0600) hold a key, and the store know it, whatever was there of the two before.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.exists():
        _write_new(file, f"{new_key(SystemRng())}\n")
    key = parse(file.read_text().strip())
    if key is None:
        raise ValueError(f"{file} does not hold a key; remove it to get a new one")
    if store.key_in_force(key.id) is None:
        grant = Grant(owner=FIRST_OWNER, name="first", scopes=ALL_SCOPES)
        with suppress(IntegrityError):  # another process was faster, or the key was revoked
            store.create_key(key.id, key.secret_sha256, grant)


def _write_new(file: Path, content: str) -> None:
    """Create `file` whole and readable by us alone; keep the one that another process made meanwhile."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(content)
            opened.flush()
            point("fsync.key.before")
            os.fsync(opened.fileno())
            point("fsync.key.after")
        with suppress(FileExistsError):
            point("link.key.before")
            file.hardlink_to(draft)
            point("link.key.after")
    finally:
        draft.unlink()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m jobs.migrate", description=__doc__)
    parser.add_argument("--first-key", type=Path, metavar="FILE", help="where the first API key is kept")
    options = parser.parse_args()
    url = settings_or_exit().database_url.get_secret_value()
    upgrade(url)
    if options.first_key is not None:
        store = SqlStore(url)
        ensure_first_key(store, options.first_key)
        store.close()


if __name__ == "__main__":
    main()
