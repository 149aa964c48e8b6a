"""The points of API keys: who revokes and touches is killed at each, and the next run goes to the end."""

import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.audit import violations
from jobs.keys import Grant
from jobs.migrate import upgrade
from jobs.sql_store import SqlStore
from tests.faults.points.lone import run_command

KEYS = ("commit.revoke_key", "commit.touch_keys")
USE_AND_REVOKE = """
import sys
from jobs.keys_command import main
from jobs.settings import Settings
from jobs.sql_store import open_store

store = open_store(Settings())
store.touch_keys({"0a1b2c3d": 1.0})
main(["revoke", "0a1b2c3d"])
"""


def kill_keys(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Problems: after the next run the key was used, is revoked, and the audit log is whole."""
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        url = f"sqlite:///{folder}/kleash.db"
        upgrade(url)
        store = SqlStore(url)
        store.create_key("0a1b2c3d", "h", Grant(owner="o", name="n", scopes=frozenset({"score"})))
        command, env = [sys.executable, "-c", USE_AND_REVOKE], {"KLEASH_DATABASE_URL": url}
        code = run_command(command, env | {"KLEASH_KILL_AT": f"{name}:1"})
        if code != -signal.SIGKILL:
            yield f"{name}: ended with {code} instead of dying"
        code, key = run_command(command, env), store.get_key("0a1b2c3d")
        if code != 0 or key.last_used_at is None or store.key_in_force(key.id) is not None:
            yield f"{name}: the next run ended with {code}, the key is {key}"
        yield from (f"{name}: {problem}" for problem in violations(store))
        store.close()
