"""Who is calling, and what they may do.

Open mode answers only this machine, and only under loopback names: a page that a browser loaded from elsewhere can
make its own name resolve to 127.0.0.1, but it cannot change the Host header (DNS rebinding).
"""

from ipaddress import ip_address
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from api.deps import Parts, PartsDep
from api.errors import HostNotAllowed, InsufficientScope, RateLimited, Unauthenticated
from api.keyring import Caller
from api.rates import RequestRates
from jobs.keys import ALL_SCOPES, Scope
from jobs.settings import LOOPBACK

LOCAL = Caller("local", None, ALL_SCOPES)  # open mode's
bearer = HTTPBearer(auto_error=False, description="An API key `kl_<id>_<secret>`.")


def bearer_token(authorization: str | None) -> str | None:
    """What `bearer` finds in the header."""
    scheme, token = get_authorization_scheme_param(authorization)
    return token if token and scheme.lower() == "bearer" else None


async def principal(
    request: Request,
    parts: PartsDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Caller:
    """The caller. In the common case this costs no query and no thread.

    Raises:
        Unauthenticated: no key, or none in force.
        RateLimited: the key has made too many requests.
        HostNotAllowed: open mode from elsewhere, or under a name that is not loopback.
    """
    return await identify(request, parts, credentials.credentials if credentials else None)


async def identify(request: Request, parts: Parts, token: str | None) -> Caller:
    """The caller with this key, without FastAPI's dependencies. Raises what `principal` raises."""
    if parts.settings.unsafe_no_auth:
        _stays_home(request)
        caller = LOCAL
    else:
        found = await parts.keyring.caller(token) if token else None
        if found is None or found.key_id is None:
            raise Unauthenticated("send Authorization: Bearer and a key; the first one is in DATA/key")
        caller = found
        _count(request, parts.rates, found.key_id)
    request.state.caller = caller
    return caller


def _count(request: Request, rates: RequestRates, key_id: str) -> None:
    """One more request of this key; whatever the answer is, its headers say how many are left."""
    if rates.per_minute == 0:
        return
    rate = rates.take(key_id)
    request.state.headers = [
        (b"ratelimit-policy", rates.policy),
        (b"ratelimit", b'"requests";r=%d;t=%d' % (rate.remaining, rate.reset_s)),
    ]
    if not rate.allowed:
        raise RateLimited(rates.per_minute, retry_after_s=rate.reset_s)


CallerDep = Annotated[Caller, Depends(principal)]


async def _owner(caller: CallerDep) -> str:
    return caller.owner


Owner = Annotated[str, Depends(_owner)]


def needs(scope: Scope) -> Dependency:
    """A route's dependency: the key must have this scope. Raises InsufficientScope."""

    async def check(request: Request, caller: CallerDep) -> None:
        request.state.needed_scope = scope
        permit(caller, scope)

    dependency: Dependency = Depends(check)
    return dependency


def permit(caller: Caller, scope: Scope) -> None:
    """Raises InsufficientScope."""
    if scope not in caller.scopes:
        raise InsufficientScope(scope)


def _stays_home(request: Request) -> None:
    if not _from_here(request):
        raise HostNotAllowed("without keys the server answers only to its own machine")
    if _hostname(request.headers.get("host", "")) not in LOOPBACK:
        raise HostNotAllowed("without keys the server answers only as 127.0.0.1, localhost or [::1]")


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
