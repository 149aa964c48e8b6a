"""Signatures after Standard Webhooks 1.0: HMAC-SHA256 of `id.timestamp.body`, symmetric secrets `whsec_…`."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
SECRET_BYTES = 32
LEAST_SECRET_BYTES = 24  # Standard Webhooks, "Signature scheme"


def new_secret() -> str:
    """A secret of 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """The bytes of a secret, with or without its prefix. Raises ValueError."""
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)


def signed_headers(secrets_: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers; one signature for each secret."""
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = [hmac.digest(key_of(secret), content, hashlib.sha256) for secret in secrets_]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
    }
