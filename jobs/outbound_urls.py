"""URLs that users give us: one parser, for the check and for the connection, and which addresses are public.

Nothing else in the process parses such a URL: what `parse` returns is what the client connects to.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

MAX_URL = 2000
# printable ASCII; a host is one IPv6 address in brackets or labels of letters, digits, hyphens and underscores
URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>/[!$-;=?-Z_a-z~]*|\?[!$-;=?-Z_a-z~]*)?",
    re.ASCII,
)
ALLOWED = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)
NUMBER = re.compile(
    r"[0-9]+|0[xX][0-9A-Fa-f]*"
)  # as the last label, some parsers take the host for an IPv4 address
# beyond what `is_global` refuses; it also depends on Python's version
NOT_PUBLIC = [
    ip_network(text)
    for text in (
        "100.64.0.0/10",  # carriers' NAT
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # a cloud's host, under a public address
        "2001::/23",  # Teredo and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
]
IPV6_UNICAST = ip_network("2000::/3")  # outside: mapped, compatible, NAT64, local, link-local, multicast

Address = IPv4Address | IPv6Address


class OutboundError(Exception):
    """A request to a user's URL that was not made, or did not end well.

    `code` is stable; `detail` is for people and names no address and nothing of the answer.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code, self.detail = code, detail

    def __str__(self) -> str:
        return self.detail


class Target(NamedTuple):
    """Where a request goes. An IPv6 host has no brackets."""

    scheme: str
    host: str
    port: int
    path: str  # with its query

    @property
    def authority(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


class Allowed(NamedTuple):
    """A host that the operator vouches for, on one port or on all (None)."""

    host: str
    port: int | None


def allowed_hosts(entries: Iterable[str]) -> frozenset[Allowed]:
    """`host` or `host:port` each. Raises ValueError."""
    found = set()
    for entry in entries:
        match = ALLOWED.fullmatch(entry)
        if match is None:
            raise ValueError(f"{entry!r} is neither host nor host:port")
        host = match["host"].lower()
        if host.startswith("["):
            host = IPv6Address(host[1:-1]).compressed
        found.add(Allowed(host, int(match["port"]) if match["port"] else None))
    return frozenset(found)


def parse(url: str) -> Target:
    """The parts of a plain http(s) URL. Raises OutboundError (`url_not_allowed`)."""
    match = URL.fullmatch(url) if len(url) <= MAX_URL else None
    if match is None:
        raise OutboundError(
            "url_not_allowed",
            "the URL must be https://host/path in plain ASCII, without user, fragment, blank or backslash",
        )
    port = int(match["port"] or {"http": 80, "https": 443}[match["scheme"]])
    if not 0 < port < 65536:
        raise OutboundError("url_not_allowed", "the URL has a port that does not exist")
    path = match["target"] or "/"
    host = _ipv6(match["v6"]) if match["v6"] else _name(match["name"])
    return Target(match["scheme"], host, port, path if path.startswith("/") else f"/{path}")


def _ipv6(text: str) -> str:
    try:
        return IPv6Address(text).compressed
    except ValueError:
        raise OutboundError("url_not_allowed", "the URL's host is not an IPv6 address") from None


def _name(name: str) -> str:
    """In lower case. A host that ends in a number is a dotted IPv4 address or nothing."""
    if NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise OutboundError(
                "url_not_allowed", "the URL's host is a number; write an IPv4 address as a.b.c.d"
            ) from None
    if len(name) > 253:
        raise OutboundError("url_not_allowed", "the URL's host is too long")
    return name.lower()


def is_public(address: str) -> bool:
    """True for an address of global unicast that holds no other address inside."""
    try:
        parsed: Address = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and (parsed.scope_id is not None or parsed not in IPV6_UNICAST):
        return False
    special = parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback or parsed.is_reserved
    inside = any(parsed in network for network in NOT_PUBLIC if network.version == parsed.version)
    return parsed.is_global and not (special or inside)
