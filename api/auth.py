"""Who is calling: the id of an API key, or `local` in open mode.

Open mode answers only this machine, and only under loopback names: a page that a browser loaded from elsewhere can
make its own name resolve to 127.0.0.1, but it cannot change the Host header (DNS rebinding).
"""

from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.deps import PartsDep
from api.errors import HostNotAllowed, Unauthenticated
from jobs.keys import verify
from jobs.settings import LOOPBACK

bearer = HTTPBearer(auto_error=False, description="An API key `kl_<id>_<secret>`.")


def principal(
    request: Request,
    parts: PartsDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> str:
    """The owner of what the request creates, and of all it may see.

    Raises:
        Unauthenticated: no key, or not one of ours.
        HostNotAllowed: open mode from elsewhere, or under a name that is not loopback.
    """
    if parts.settings.unsafe_no_auth:
        if not _from_here(request):
            raise HostNotAllowed("without keys the server answers only to its own machine")
        if _hostname(request.headers.get("host", "")) not in LOOPBACK:
            raise HostNotAllowed("without keys the server answers only as 127.0.0.1, localhost or [::1]")
        return "local"
    owner = verify(parts.store, credentials.credentials) if credentials else None
    if owner is None:
        raise Unauthenticated("send Authorization: Bearer and a key; the first one is in DATA/key")
    return owner


Owner = Annotated[str, Depends(principal)]


def _from_here(request: Request) -> bool:
    """True for a peer on loopback, or on a unix socket, which has no address."""
    if request.client is None:
        return True
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
