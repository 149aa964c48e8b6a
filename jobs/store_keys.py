"""The port to API keys: hashes go in, never a key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jobs.keys import Grant, KeyInForce, StoredKey
from jobs.sql_idempotency import KeyUse


@dataclass(frozen=True, kw_only=True)
class KeyCreated:
    """The API key of a create call; `replayed` when the idempotency key had made it before."""

    key: StoredKey
    replayed: bool


class KeyStore(Protocol):
    """The part of jobs.store.Store that keeps API keys."""

    def create_key(
        self, key_id: str, secret_sha256: str, grant: Grant, use: KeyUse | None = None
    ) -> KeyCreated:
        """Insert a key by its id and the hash of its secret, or return the one that `use` made before.

        Raises IdempotencyKeyReused.
        """
        ...

    def key_in_force(self, key_id: str) -> KeyInForce | None:
        """What a request is held against; None for a key that is unknown, expired or revoked."""
        ...

    def get_key(self, key_id: str) -> StoredKey:
        """The key, in force or not. Raises KeyNotFound."""
        ...

    def list_keys(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 20
    ) -> list[StoredKey]:
        """Newest first, of one owner or of all; `after` is the last id of the page before."""
        ...

    def revoke_key(self, key_id: str) -> None:
        """Out of force for ever; a repeat changes nothing. Raises KeyNotFound."""
        ...

    def touch_keys(self, ages_s: Mapping[str, float]) -> None:
        """Keys were last used so many seconds ago; a time less than a minute later than the known one is left."""
        ...
