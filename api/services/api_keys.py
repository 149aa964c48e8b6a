"""What the operator can do with API keys: make, look, revoke. Every owner's keys are in reach."""

import hashlib
from typing import NamedTuple

from api.errors import InvalidCursor
from api.keyring import Caller, Keyring
from jobs.errors import KeyNotFound
from jobs.keys import KEY_ID, Grant, Key, StoredKey, new_key
from jobs.ports import Rng
from jobs.sql_idempotency import KeyUse
from jobs.store_keys import KeyStore

CREATE = "api_keys_create"


class Made(NamedTuple):
    """A key that was made; the whole of it only this once."""

    stored: StoredKey
    key: Key | None


class KeyPage(NamedTuple):
    """One page, newest first; `more` when older keys follow."""

    keys: list[StoredKey]
    more: bool


class WhoIs(NamedTuple):
    """A caller, and the key that made it one; None in open mode."""

    caller: Caller
    key: StoredKey | None


class ApiKeys:
    """The collection of keys."""

    def __init__(self, store: KeyStore, rng: Rng, keyring: Keyring) -> None:
        self._store, self._rng, self._keyring = store, rng, keyring

    def create(self, grant: Grant, caller: Caller, idempotency_key: str | None) -> Made:
        """A key, or what is known of the one that this caller's Idempotency-Key made before.

        Raises IdempotencyKeyReused.
        """
        use = None
        if idempotency_key is not None:
            text = repr((grant.owner, grant.name, sorted(grant.scopes), grant.expires_at, grant.expires_in_s))
            request_sha256 = hashlib.sha256(text.encode()).hexdigest()
            use = KeyUse(caller.owner, CREATE, idempotency_key, request_sha256)
        key = new_key(self._rng)
        created = self._store.create_key(key.id, key.secret_sha256, grant, use)
        return Made(created.key, None if created.replayed else key)

    def page(self, *, owner: str | None, after: str | None, limit: int) -> KeyPage:
        """Newest first, after the key `after`. Raises InvalidCursor."""
        if after is not None and not KEY_ID.fullmatch(after):
            raise InvalidCursor
        keys = self._store.list_keys(owner=owner, after=after, limit=limit + 1)
        return KeyPage(keys[:limit], len(keys) > limit)

    def get(self, key_id: str) -> StoredKey:
        """The key. Raises KeyNotFound."""
        return self._store.get_key(_known_shape(key_id))

    def revoke(self, key_id: str) -> None:
        """Out of force for this process at once, for others within a second. Raises KeyNotFound."""
        self._store.revoke_key(_known_shape(key_id))
        self._keyring.forget(key_id)

    def who(self, caller: Caller) -> WhoIs:
        """The caller and its key."""
        return WhoIs(caller, None if caller.key_id is None else self._store.get_key(caller.key_id))


def _known_shape(key_id: str) -> str:
    if not KEY_ID.fullmatch(key_id):
        raise KeyNotFound(key_id)
    return key_id
