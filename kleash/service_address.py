"""Where the service is and which key opens it, from arguments, the environment and this machine's files."""

import os
import ssl
from pathlib import Path
from typing import NamedTuple

import httpx2

from kleash.errors import KleashError

DEFAULT_URL = "http://127.0.0.1:8000"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Address(NamedTuple):
    """A service, and what its requests carry; `local`: it is this machine's."""

    url: httpx2.URL
    headers: dict[str, str]
    local: bool

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """Whom to trust: nobody where there is no TLS, for the usual certificates take 20 ms to load."""
        plain = self.local and self.url.scheme == "http"
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else True


def address(base_url: str | None, key: str | None, data: str | os.PathLike[str] | None) -> Address:
    """`base_url` or KLEASH_URL or port 8000 here; `key` or KLEASH_KEY or, for this machine, the file in `data`.

    Raises:
        KleashError: the address is no URL, or the key holds what no header can.
    """
    try:
        url = httpx2.URL(base_url or os.environ.get("KLEASH_URL") or DEFAULT_URL)
    except (httpx2.InvalidURL, ValueError) as error:
        raise KleashError(0, "invalid_url", f"the service's address is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise KleashError(0, "invalid_url", "the service's address must begin with http:// or https://")
    local = url.host in LOOPBACK
    key = key or os.environ.get("KLEASH_KEY") or (_key_of_this_machine(data) if local else None)
    if key is not None and not (key.isascii() and key.isprintable()):
        raise KleashError(0, "invalid_key", "the API key holds a character that no key has")
    return Address(url, {"Authorization": f"Bearer {key}"} if key else {}, local)


def _key_of_this_machine(data: str | os.PathLike[str] | None) -> str | None:
    """The key that `kleash up` wrote, if it is there and ours to read."""
    try:
        return Path(data or os.environ.get("KLEASH_DATA") or ".kleash", "key").read_text().strip() or None
    except OSError:
        return None
