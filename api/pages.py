"""Lists in pages: how long one may be, and where the next one is."""

from typing import Annotated

from fastapi import Query, Request, Response

MAX_PAGE, MAX_ROWS, INT32, INT64 = 100, 1000, 2**31 - 1, 2**63 - 1

Limit = Annotated[int, Query(ge=-INT64, le=INT64, description="1 to 100; what is outside is moved inside.")]
Rows = Annotated[int, Query(ge=-INT64, le=INT64, description="1 to 1000; what is outside is moved inside.")]


def clamp(limit: int, most: int) -> int:
    """Moved into 1 … most."""
    return max(1, min(limit, most))


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Say where the next page is (RFC 8288): this request with `after`; relative, so a proxy is no trouble."""
    if cursor is not None:
        url = request.url.include_query_params(after=cursor)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
