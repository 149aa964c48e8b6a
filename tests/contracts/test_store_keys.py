"""API keys in SQLite and PostgreSQL: what is in force, lists, revocation, last use; old keys migrated."""

from typing import Any

import pytest
from sqlalchemy import text

from jobs import keys, migrate
from jobs.errors import IdempotencyKeyReused, KeyNotFound
from jobs.keys import ALL_SCOPES, Grant
from jobs.sql_idempotency import KeyUse
from jobs.sql_store import SqlStore
from jobs.system import SystemRng


def grant(**values: Any) -> Grant:
    return Grant(**({"owner": "team", "name": "n", "scopes": frozenset({"score"})} | values))


def test_a_key_is_in_force_until_its_end_by_the_databases_clock(store: SqlStore, clock: Any) -> None:
    store.create_key("a", "hash a", grant(expires_in_s=10.0))
    store.create_key("b", "hash b", grant(expires_at=clock.time + 20, scopes=ALL_SCOPES))
    store.create_key("c", "hash c", grant(owner="other"))
    assert store.get_key("a").expires_at == clock.time + 10
    clock.time += 4
    assert store.key_in_force("a") == ("hash a", "team", {"score"}, 6.0)
    assert store.key_in_force("b") == ("hash b", "team", ALL_SCOPES, 16.0)
    assert store.key_in_force("c") == ("hash c", "other", {"score"}, None)
    clock.time += 6  # a's last moment is over
    assert store.key_in_force("a") is store.key_in_force("nobody") is None
    assert store.key_in_force("b") is not None


def test_a_revoked_key_stays_revoked(store: SqlStore, clock: Any) -> None:
    store.create_key("a", "hash", grant())
    store.revoke_key("a")
    clock.time += 1
    store.revoke_key("a")
    assert store.key_in_force("a") is None
    assert store.get_key("a").revoked_at == clock.time - 1
    for ask in (store.revoke_key, store.get_key):
        with pytest.raises(KeyNotFound):
            ask("nobody")


def test_keys_are_listed_newest_first_also_when_made_in_one_moment(store: SqlStore, clock: Any) -> None:
    for moment in ("ab", "cd"):
        for name in moment:
            store.create_key(name, "hash", grant(owner=moment))
        clock.time += 1
    assert [key.id for key in store.list_keys()] == ["d", "c", "b", "a"]
    pages = [[key.id for key in store.list_keys(after=after, limit=2)] for after in ("d", "c", "b", "a")]
    assert pages == [["c", "b"], ["b", "a"], ["a"], []]
    assert [key.id for key in store.list_keys(owner="ab")] == ["b", "a"]


def test_the_last_use_is_written_at_most_once_a_minute(store: SqlStore, clock: Any) -> None:
    store.create_key("a", "hash", grant())
    store.create_key("b", "hash", grant())
    store.touch_keys({})
    assert store.get_key("a").last_used_at is None
    store.touch_keys({"b": 0.0, "a": 3.0, "gone": 1.0})
    assert (store.get_key("a").last_used_at, store.get_key("b").last_used_at) == (997.0, 1000.0)
    clock.time += 59  # 1059: 62 s after a's, 59 s after b's
    store.touch_keys({"a": 0.0, "b": 0.0})
    assert (store.get_key("a").last_used_at, store.get_key("b").last_used_at) == (1059.0, 1000.0)
    store.touch_keys({"a": 100.0})  # an older use, written late
    assert store.get_key("a").last_used_at == 1059.0


def test_a_repeated_create_makes_no_second_key(store: SqlStore) -> None:
    first = store.create_key("a", "hash a", grant(), KeyUse("team", "api_keys_create", "k", "1"))
    again = store.create_key("b", "hash b", grant(), KeyUse("team", "api_keys_create", "k", "1"))
    assert (first.replayed, again.replayed) == (False, True)
    assert first.key == again.key
    with pytest.raises(IdempotencyKeyReused):
        store.create_key("c", "hash c", grant(), KeyUse("team", "api_keys_create", "k", "2"))
    assert [key.id for key in store.list_keys()] == ["a"]


def test_a_database_holds_no_secret(store: SqlStore) -> None:
    made = [keys.new_key(SystemRng()) for _ in range(5)]
    for key in made:
        store.create_key(key.id, key.secret_sha256, grant())
    with store.reading() as connection:
        dump = str(connection.execute(text("SELECT * FROM api_keys")).all())
    assert all(key.id in dump and key.secret not in dump for key in made)


def test_keys_of_before_own_their_jobs_and_may_do_everything(
    empty_database_url: str, tmp_path: Any, new_postgres_database: Any
) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    if empty_database_url.startswith("postgres"):
        url = new_postgres_database("old")
    migrate.upgrade(url, "0002")
    store = SqlStore(url)
    with store.writing() as connection:
        connection.execute(
            text(
                "INSERT INTO api_keys (id, secret_sha256, name, created_at) VALUES ('0a1b2c3d', 'h', 'n', 7.0)"
            )
        )
    migrate.upgrade(url)
    assert store.key_in_force("0a1b2c3d") == ("h", "0a1b2c3d", ALL_SCOPES, None)
    store.close()
