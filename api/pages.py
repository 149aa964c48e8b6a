"""Lists in pages: how long one may be, and where the next one is."""

import hashlib
import json
import re
from typing import Annotated, Any

from fastapi import Query, Request, Response

from api.services.jobs import JobPage

MAX_PAGE, MAX_ROWS, INT32, INT64 = 100, 1000, 2**31 - 1, 2**63 - 1

Limit = Annotated[int, Query(ge=-INT64, le=INT64, description="1 to 100; what is outside is moved inside.")]
Rows = Annotated[int, Query(ge=-INT64, le=INT64, description="1 to 1000; what is outside is moved inside.")]


def cursor(shape: re.Pattern[str], said: str = "The `next_cursor` of the page before.") -> Any:
    """A query parameter of that shape in the document; what has another is the route's own error."""
    return Query(description=said, json_schema_extra={"pattern": f"^{shape.pattern}$"})


def clamp(limit: int, most: int) -> int:
    """Moved into 1 … most."""
    return max(1, min(limit, most))


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """Say where the next page is (RFC 8288): this request with `after`; relative, so a proxy is no trouble."""
    if cursor is not None:
        url = request.url.include_query_params(after=cursor)
        response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'


def page_etag(query: str, page: JobPage[Any], total: int | None) -> str:
    """Strong: what a list of jobs answers to a query is a function of the versions of its jobs."""
    told = json.dumps([query, [(job.id, job.version) for job in page.jobs], page.more, total])
    return f'"{hashlib.sha256(told.encode()).hexdigest()[:32]}"'
