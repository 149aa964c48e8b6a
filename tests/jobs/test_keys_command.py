"""`python -m jobs.keys`: the operator's keys without a server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs import keys, keys_command
from jobs.audit import violations
from jobs.keys import ALL_SCOPES, verify
from jobs.settings import Settings
from jobs.sql_store import SqlStore

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _settings(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(database_url=SecretStr(str(store.engine.url)))
    monkeypatch.setattr(keys_command, "settings_or_exit", lambda: settings)


def test_a_key_is_made_listed_and_revoked(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--name", "ci", "--owner", "team", "--scope", "score", "--scope", "jobs:read"]
    keys_command.main(["create", *wanted, "--expires-in-days", "0.5"])
    made = capsys.readouterr().out.strip()
    found = verify(store, made)
    assert found is not None
    assert (found.owner, found.scopes) == ("team", {"score", "jobs:read"})
    assert found.expires_in_s == pytest.approx(43_200, abs=60)
    key = keys.parse(made)
    assert key is not None
    keys_command.main(["list"])
    listed = capsys.readouterr().out
    assert key.secret not in listed
    assert listed.splitlines()[1].split()[:3] == [key.id, "team", "ci"]
    assert listed.splitlines()[1].endswith("never             jobs:read score")
    for _ in range(2):
        keys_command.main(["revoke", key.id])
    assert verify(store, made) is None
    done = [(row.entry.owner, row.entry.operation, row.entry.resource_id) for row in store.list_audit()]
    assert done == [
        ("(operator)", "api_keys_create", key.id),
        *[("(operator)", "api_keys_revoke", key.id)] * 2,
    ]
    assert list(violations(store)) == []


def test_without_scopes_a_key_may_do_all_but_make_keys(
    store: SqlStore, capsys: pytest.CaptureFixture[str]
) -> None:
    keys_command.main(["create", "--name", "n"])
    found = verify(store, capsys.readouterr().out.strip())
    assert found is not None
    assert (found.owner, found.scopes, found.expires_in_s) == ("default", ALL_SCOPES - {"admin"}, None)


def test_many_keys_are_listed_page_by_page(
    store: SqlStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys_command, "PAGE", 2)
    for name in "abcde":
        keys_command.main(["create", "--name", name])
    capsys.readouterr()
    keys_command.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["e", "d", "c", "b", "a"]


REFUSED = [
    ["create"],
    ["create", "--name", "n", "--owner", "Team"],
    ["create", "--name", "n", "--scope", "jobs"],
    ["create", "--name", "n", "--expires-in-days", "0"],
    ["create", "--name", "n", "--expires-in-days", "nan"],
    ["revoke", "0000beef"],
    ["revoke", "nobody"],
    [],
]


def test_what_is_no_key_is_refused(store: SqlStore) -> None:
    for arguments in REFUSED:
        with pytest.raises(SystemExit) as ended:
            keys_command.main(arguments)
        assert ended.value.code not in (0, None), arguments
    assert store.list_keys() == []
    assert store.list_audit() == []


def test_it_is_a_command(store: SqlStore) -> None:
    command = [sys.executable, "-m", "jobs.keys", "create", "--name", "n"]
    environment = os.environ | {"KLEASH_DATABASE_URL": str(store.engine.url)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert verify(store, done.stdout.strip())
