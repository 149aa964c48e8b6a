"""Who is calling, and what they may do.

Open mode answers only this machine, and only under loopback names: a page that a browser loaded from elsewhere can
make its own name resolve to 127.0.0.1, but it cannot change the Host header (DNS rebinding).
"""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Literal, get_args
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.deps import PartsDep
from api.errors import HostNotAllowed, InsufficientScope, Unauthenticated
from jobs.keys import verify
from jobs.settings import LOOPBACK

Scope = Literal[
    "score", "jobs:read", "jobs:write", "models:read", "models:write", "files", "webhooks", "admin"
]
ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

bearer = HTTPBearer(auto_error=False, description="An API key `kl_<id>_<secret>`.")


@dataclass(frozen=True)
class Caller:
    """Whose things a request may see, by which key, and what it may do with them."""

    owner: str
    key_id: str | None
    scopes: frozenset[Scope]


def principal(
    request: Request,
    parts: PartsDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Caller:
    """The caller.

    Raises:
        Unauthenticated: no key, or not one of ours.
        HostNotAllowed: open mode from elsewhere, or under a name that is not loopback.
    """
    if parts.settings.unsafe_no_auth:
        if not _from_here(request):
            raise HostNotAllowed("without keys the server answers only to its own machine")
        if _hostname(request.headers.get("host", "")) not in LOOPBACK:
            raise HostNotAllowed("without keys the server answers only as 127.0.0.1, localhost or [::1]")
        return Caller("local", None, ALL_SCOPES)
    key_id = verify(parts.store, credentials.credentials) if credentials else None
    if key_id is None:
        raise Unauthenticated("send Authorization: Bearer and a key; the first one is in DATA/key")
    return Caller(key_id, key_id, ALL_SCOPES)


CallerDep = Annotated[Caller, Depends(principal)]


async def _owner(caller: CallerDep) -> str:
    return caller.owner


Owner = Annotated[str, Depends(_owner)]


def needs(scope: Scope) -> Dependency:
    """A route's dependency: the key must have this scope. Raises InsufficientScope."""

    async def check(caller: CallerDep) -> None:
        permit(caller, scope)

    dependency: Dependency = Depends(check)
    return dependency


def permit(caller: Caller, scope: Scope) -> None:
    """Raises InsufficientScope."""
    if scope not in caller.scopes:
        raise InsufficientScope(f"this needs a key with the scope {scope}")


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
