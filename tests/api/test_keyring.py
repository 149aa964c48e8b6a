"""The keyring: how many lookups it spares, and for how long what it remembers holds."""

import threading
from collections.abc import Mapping

import anyio
import pytest

from api import keyring as rooms
from api.keyring import FRESH_S, Caller, Keyring
from jobs.errors import StoreUnavailable
from jobs.keys import Grant, Key, KeyInForce, StoredKey, new_key
from jobs.sql_idempotency import KeyUse
from jobs.store_keys import KeyCreated
from jobs.system import SystemRng

KEYS = [new_key(SystemRng()) for _ in range(3)]
MINE = KEYS[0]


class CountingKeys:
    """Keys in memory. `during` runs inside a lookup, after the row was read."""

    def __init__(self) -> None:
        self.rows = {key.id: KeyInForce(key.secret_sha256, "me", frozenset({"score"}), None) for key in KEYS}
        self.asked: list[str] = []
        self.threads: set[int] = set()
        self.touched: list[dict[str, float]] = []
        self.up, self.time = True, 100.0
        self.during = lambda: None

    def key_in_force(self, key_id: str) -> KeyInForce | None:
        self.asked.append(key_id)
        self.threads.add(threading.get_ident())
        if not self.up:
            raise StoreUnavailable
        found = self.rows.get(key_id)
        self.during()
        return found

    def touch_keys(self, ages_s: Mapping[str, float]) -> None:
        if not self.up:
            raise StoreUnavailable
        self.touched.append(dict(ages_s))

    def create_key(self, key_id: str, sha: str, grant: Grant, use: KeyUse | None = None) -> KeyCreated:
        raise NotImplementedError

    def get_key(self, key_id: str) -> StoredKey:
        raise NotImplementedError

    def list_keys(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 20
    ) -> list[StoredKey]:
        raise NotImplementedError

    def revoke_key(self, key_id: str) -> None:
        del self.rows[key_id]


@pytest.fixture
def stored() -> CountingKeys:
    return CountingKeys()


@pytest.fixture
def keyring(stored: CountingKeys) -> Keyring:
    return Keyring(stored, monotonic=lambda: stored.time)


def asked(keyring: Keyring, key: Key | str, times: int = 1) -> Caller | None:
    async def ask() -> Caller | None:
        for _ in range(times):
            found = await keyring.caller(str(key))
        return found

    return anyio.run(ask)


def test_a_thousand_requests_cost_one_lookup_in_another_thread(
    keyring: Keyring, stored: CountingKeys
) -> None:
    assert asked(keyring, MINE, 1000) == Caller("me", MINE.id, frozenset({"score"}))
    assert stored.asked == [MINE.id]
    assert threading.get_ident() not in stored.threads
    stored.time += FRESH_S - 0.01
    asked(keyring, MINE)
    assert len(stored.asked) == 1
    stored.time += 0.01
    asked(keyring, MINE)
    assert len(stored.asked) == 2


def test_a_wrong_secret_and_an_unknown_id_cost_one_lookup_for_all(
    keyring: Keyring, stored: CountingKeys
) -> None:
    forged = MINE._replace(secret=KEYS[1].secret)
    assert asked(keyring, MINE)
    assert asked(keyring, forged, 100) is None
    assert stored.asked == [MINE.id]
    assert asked(keyring, MINE)  # and the right one is not the worse for it
    nobody = new_key(SystemRng())
    assert asked(keyring, nobody, 100) is None
    assert stored.asked == [MINE.id, nobody.id]
    assert asked(keyring, "no key at all", 100) is None
    assert len(stored.asked) == 2


def test_a_key_ends_in_the_cache_when_it_ends_in_the_database(keyring: Keyring, stored: CountingKeys) -> None:
    stored.rows[MINE.id] = stored.rows[MINE.id]._replace(expires_in_s=0.3)
    assert asked(keyring, MINE)
    del stored.rows[MINE.id]
    stored.time += 0.3
    assert asked(keyring, MINE) is None


def test_a_revocation_here_holds_at_once(keyring: Keyring, stored: CountingKeys) -> None:
    assert asked(keyring, MINE)
    stored.revoke_key(MINE.id)
    keyring.forget(MINE.id)
    assert asked(keyring, MINE) is None


def test_a_lookup_that_began_before_the_revocation_is_not_kept(
    keyring: Keyring, stored: CountingKeys
) -> None:
    def revoke() -> None:
        stored.during = lambda: None
        stored.revoke_key(MINE.id)
        keyring.forget(MINE.id)

    stored.during = revoke
    assert asked(keyring, MINE)  # it was read in force
    assert asked(keyring, MINE) is None


def test_the_ring_is_bounded(keyring: Keyring, stored: CountingKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MOST", 2)
    for key in KEYS:
        asked(keyring, key)
    asked(keyring, KEYS[2])
    asked(keyring, KEYS[1])
    assert len(stored.asked) == 3
    asked(keyring, KEYS[0])
    assert len(stored.asked) == 4


def test_uses_are_written_once_and_kept_while_the_database_is_down(
    keyring: Keyring, stored: CountingKeys
) -> None:
    asked(keyring, MINE, 10)
    asked(keyring, MINE._replace(secret=KEYS[1].secret))
    stored.time += 0.5
    asked(keyring, KEYS[1])
    stored.up = False
    keyring.write_uses()
    stored.up, stored.time = True, stored.time + 2
    asked(keyring, KEYS[1])
    keyring.write_uses()
    keyring.write_uses()
    assert stored.touched == [{MINE.id: 2.5, KEYS[1].id: 0.0}, {}]


def test_the_loop_writes_a_last_time_when_it_is_told_to_stop(keyring: Keyring, stored: CountingKeys) -> None:
    asked(keyring, MINE)
    stop = threading.Event()
    stop.set()
    keyring.run(stop)
    assert stored.touched == [{MINE.id: 0.0}]


def test_an_outage_is_not_a_refusal(keyring: Keyring, stored: CountingKeys) -> None:
    stored.up = False
    with pytest.raises(StoreUnavailable):
        asked(keyring, MINE)
    stored.up = True
    assert asked(keyring, MINE)


def test_streams_of_a_key_look_it_up_once_even_while_the_store_is_away(
    keyring: Keyring, stored: CountingKeys
) -> None:
    async def expected(holds: bool, lookups: int) -> None:
        found = list[bool]()

        async def one() -> None:
            found.append(await keyring.holds(MINE.id))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one)
        assert found == [holds] * 50
        assert len(stored.asked) == lookups

    async def follow() -> None:
        await expected(True, 1)
        stored.time += FRESH_S
        stored.up = False
        await expected(True, 2)  # not known, which counts as yes
        stored.up, stored.time = True, stored.time + FRESH_S
        stored.revoke_key(MINE.id)
        await expected(False, 3)

    anyio.run(follow)
