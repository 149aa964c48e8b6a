"""API keys: `kl_<8 characters: id>_<43 characters: secret>`. Only the id and a hash of the secret are stored.

The secret has 256 random bits: a plain SHA-256 cannot be searched, and costs an attacker's request nothing.
`python -m jobs.keys` makes, lists and revokes keys beside the server (jobs/keys_command.py).
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from jobs.ports import Rng

if TYPE_CHECKING:
    from jobs.store_keys import KeyStore

Scope = Literal[
    "score", "jobs:read", "jobs:write", "models:read", "models:write", "files", "webhooks", "admin"
]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

FORM = re.compile(r"kl_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", re.ASCII)
KEY_ID = re.compile(r"[0-9a-f]{8}")
OWNER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
FIRST_OWNER = "default"
NOBODY = "0" * 64


class Key(NamedTuple):
    """A key in two parts."""

    id: str
    secret: str

    def __str__(self) -> str:
        return f"kl_{self.id}_{self.secret}"

    @property
    def secret_sha256(self) -> str:
        """What is stored of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What a new key is for: whose things it sees, what it may do with them, until when."""

    owner: str
    name: str
    scopes: frozenset[Scope]
    expires_at: float | None = None
    expires_in_s: float | None = None  # from now by the database's clock; instead of expires_at


@dataclass(frozen=True, kw_only=True)
class StoredKey:
    """All that is known of a key, in force or not."""

    id: str
    owner: str
    name: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None


class KeyInForce(NamedTuple):
    """What a request is held against: of a key that is neither revoked nor expired."""

    secret_sha256: str
    owner: str
    scopes: frozenset[Scope]
    expires_in_s: float | None  # from the moment it was read


def new_key(rng: Rng) -> Key:
    """A key nobody has."""
    return Key(id=hashlib.sha256(rng.secret().encode()).hexdigest()[:8], secret=rng.secret())


def parse(text: str) -> Key | None:
    """The key, or None if this is not one."""
    match = FORM.fullmatch(text)
    return None if match is None else Key(match[1], match[2])


def authentic(key: Key, stored: KeyInForce | None) -> bool:
    """True if the key has the stored secret; the comparison takes constant time, also with nothing stored."""
    same = hmac.compare_digest(NOBODY if stored is None else stored.secret_sha256, key.secret_sha256)
    return same and stored is not None


def verify(store: "KeyStore", text: str) -> KeyInForce | None:
    """What a key may do that was issued and is in force, else None."""
    key = parse(text)
    if key is None:
        return None
    stored = store.key_in_force(key.id)
    return stored if authentic(key, stored) else None


def stored_scopes(scopes: Iterable[Scope]) -> str:
    """Scopes as a column's text."""
    return " ".join(sorted(scopes))


def scopes_of(text: str) -> frozenset[Scope]:
    """The scopes in a column's text. What this release does not know allows nothing."""
    return frozenset(ALL_SCOPES & set(text.split()))


if __name__ == "__main__":
    from jobs.keys_command import main

    main()
