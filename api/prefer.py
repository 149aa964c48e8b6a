"""`Prefer: wait=N` (RFC 7240), or `?wait=N`: how long a poll may be held back for news."""

from typing import Annotated

from fastapi import Header, Query

from api.pages import INT32

MOST_S = 55  # proxies commonly give up after 60

Prefer = Annotated[
    str | None,
    Header(description=f"`wait=N`: with If-None-Match, wait for a change up to N seconds, at most {MOST_S}."),
]
Wait = Annotated[int | None, Query(ge=0, le=INT32, description="The same as `Prefer: wait=N`.")]


def wait_s(prefer: str | None, wait: int | None) -> int:
    """Seconds, 0 to MOST_S. A preference that cannot be read is none, says the RFC; the header goes first."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isdecimal():
            return min(int(value[:9]), MOST_S)
    return min(wait or 0, MOST_S)
