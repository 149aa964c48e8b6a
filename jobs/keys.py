"""API keys: `kl_<8 characters: id>_<43 characters: secret>`. Only the id and a hash of the secret are stored.

The secret has 256 random bits: a plain SHA-256 cannot be searched, and costs an attacker's request nothing.
"""

import hashlib
import hmac
import re
from typing import NamedTuple

from jobs.ports import Rng
from jobs.store import Store

FORM = re.compile(r"kl_([0-9a-f]{8})_([A-Za-z0-9_-]{43})", re.ASCII)
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


def new_key(rng: Rng) -> Key:
    """A key nobody has."""
    return Key(id=hashlib.sha256(rng.secret().encode()).hexdigest()[:8], secret=rng.secret())


def parse(text: str) -> Key | None:
    """The key, or None if this is not one."""
    match = FORM.fullmatch(text)
    return None if match is None else Key(match[1], match[2])


def verify(store: Store, text: str) -> str | None:
    """The id of a key that was issued and not revoked, else None; the comparison takes constant time."""
    key = parse(text)
    if key is None:
        return None
    stored = store.key_secret_sha256(key.id)
    same = hmac.compare_digest(stored or NOBODY, key.secret_sha256)
    return key.id if same else None
