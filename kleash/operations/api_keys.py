"""/v1/api-keys and /v1/whoami."""

from collections.abc import Sequence

from kleash.calls import Call, document, given, new_key, nothing
from kleash.documents import Page
from kleash.service_documents import ApiKey, Caller, MadeApiKey

KEYS, KEY = "/v1/api-keys", "/v1/api-keys/{key_id}"


def create(
    name: str,
    scopes: Sequence[str],
    *,
    owner: str | None = None,
    expires_at: str | None = None,
    expires_in_s: int | None = None,
    idempotency_key: str | None = None,
) -> Call[MadeApiKey]:
    """Make a key; the answer has the whole of it (`key`), this once."""
    body = given(name=name, scopes=scopes, owner=owner, expires_at=expires_at, expires_in_s=expires_in_s)
    headers = new_key(idempotency_key)
    return Call("api_keys_create", "POST", KEYS, document, headers=headers, body=body, repeatable=True)


def list_(
    *, owner: str | None = None, limit: int | None = None, after: str | None = None
) -> Call[Page[ApiKey]]:
    """One page, newest first."""
    query = {"owner": owner, "limit": limit, "after": after}
    return Call("api_keys_list", "GET", KEYS, document, query=query, repeatable=True)


def get(key_id: str) -> Call[ApiKey]:
    """What is known of a key."""
    return Call("api_keys_get", "GET", KEY, document, {"key_id": key_id}, repeatable=True)


def revoke(key_id: str) -> Call[None]:
    """End a key."""
    return Call("api_keys_revoke", "DELETE", KEY, nothing, {"key_id": key_id})


def whoami() -> Call[Caller]:
    """Whose key it is, and what it may do."""
    return Call("whoami", "GET", "/v1/whoami", document, repeatable=True)
