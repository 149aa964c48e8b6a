"""Entity tags of versions, and the conditions that requests put on them (RFC 9110 §13.1)."""

import re

VERSION_TAG = re.compile(r'"([0-9]{1,10})(\.[a-z_]+)?"')


def etag(version: int, include: str | None = None) -> str:
    """Strong: of one version, as it is shown with `include`."""
    return f'"{version}"' if include is None else f'"{version}.{include}"'


def matches(if_none_match: str, current: str) -> bool:
    """The weak comparison of If-None-Match, with any tag in the list."""
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return current in tags or "*" in tags


def versions_of(if_match: str | None) -> frozenset[int] | None:
    """Those that If-Match allows, however they were shown; None for any. A weak tag is no version's."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = (VERSION_TAG.fullmatch(tag.strip()) for tag in if_match.split(","))
    return frozenset(int(match[1]) for match in found if match)
