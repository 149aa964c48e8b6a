"""/v1/jobs/{job_id}/metrics: series for charts, and the same numbers as a file."""

import csv
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import orjson
from fastapi import Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.auth import Owner
from api.deps import MetricsDep
from api.entity_tags import matches
from api.errors import InvalidCursor
from api.json_response import json_response
from api.pages import INT32, INT64, clamp, cursor, link_next
from api.routing import DESCRIPTIONS, TEXT, Responses, problems, v1_router
from api.schemas import rfc3339
from api.schemas_metrics import MetricsDocument, metrics_document
from api.services.metrics import MetricTable
from jobs.metric_series import CURSOR, LEAST_POINTS, MOST_POINTS, TIMINGS, Choice, Cursor, SeriesQuery

router = v1_router("jobs", "jobs:read")

Step = Annotated[int, Query(ge=0, le=INT32)]
KEY = "[A-Za-z0-9_./@*-]{1,100}"
JSONL, CSV = "application/jsonl", "text/csv; charset=utf-8"
SHOWN: Responses = {
    200: {
        "description": "Series; or with `format` a line for each step",
        "content": {
            JSONL: {"schema": {"type": "string"}},
            "text/csv": {"schema": {"type": "string"}},
        },
        "headers": {"ETag": TEXT},
    },
    304: {"description": DESCRIPTIONS[304]},
}


def series_query(
    keys: Annotated[
        str | None,
        Query(
            pattern=f"^{KEY}(,{KEY}){{0,99}}$",
            description="Separated by commas; `*` stands for anything, as in `kl/*`. All, if not given.",
            examples=["kl/sequence,reward/*"],
        ),
    ] = None,
    from_step: Step = 0,
    to_step: Annotated[int | None, Query(ge=0, le=INT32)] = None,
    max_points: Annotated[
        int,
        Query(
            ge=-INT64,
            le=INT64,
            description=f"Of a series: {LEAST_POINTS} to {MOST_POINTS}; what is outside is moved inside.",
        ),
    ] = 500,
    downsample: Annotated[
        Choice,
        Query(
            description="What is kept of more points: of equal spans of steps the lowest and the highest point "
            "(`minmax`) or the last one; with `none` all, page by page of `max_points` steps."
        ),
    ] = "minmax",
    include: Annotated[
        Literal["time"] | None, Query(description="`time` of each point, which doubles the answer.")
    ] = None,
    after: Annotated[
        str | None, cursor(CURSOR, "The `next_after` of an earlier answer: only what has changed since.")
    ] = None,
) -> SeriesQuery:
    """The query's parameters. Raises InvalidCursor."""
    known = None if after is None else Cursor.parse(after)
    if after is not None and known is None:
        raise InvalidCursor("not a cursor of metrics")
    return SeriesQuery(
        patterns=tuple(keys.split(",")) if keys else (),
        from_step=from_step,
        to_step=to_step,
        most=max(LEAST_POINTS, clamp(max_points, MOST_POINTS)),
        choose=downsample,
        after=known,
        times=include == "time",
    )


@router.get(
    "/jobs/{job_id}/metrics",
    operation_id="jobs_metrics",
    summary="Show a job's metrics",
    response_model=MetricsDocument,
    responses=SHOWN | problems(400, 404),
)
def metrics(
    job_id: str,
    owner: Owner,
    service: MetricsDep,
    request: Request,
    query: Annotated[SeriesQuery, Depends(series_query)],
    format: Annotated[  # the parameter's public name
        Literal["json", "jsonl", "csv"],
        Query(
            description="A line for each step, all of them, with `jsonl` or `csv`; `after` is then ignored."
        ),
    ] = "json",
    if_none_match: Annotated[str | None, Header(description="An ETag of before.")] = None,
) -> Response:
    """Steps and values of each key, down-sampled to what a chart can show; a score job's steps are its shards.

    To follow a job, send `next_after` as `after`: the answer has the points that came since. Where
    `rewritten_from` is not null, another attempt went on from an earlier step: drop what you have from that step
    on, then add.
    """
    mark = service.mark(job_id, owner)
    headers = {"ETag": f'"{mark.attempt}.{mark.step}"'}
    if if_none_match is not None and matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if format != "json":
        lines, media_type = LINES[format]
        name = f'attachment; filename="{job_id}-metrics.{format}"'
        headers |= {"Content-Disposition": name, "X-Content-Type-Options": "nosniff"}
        table = service.table(job_id, query, mark)
        return StreamingResponse(lines(table), media_type=media_type, headers=headers)
    answer = service.series(job_id, query)
    response = json_response(metrics_document(job_id, answer))
    response.headers.update(headers)
    link_next(request, response, str(answer.cursor) if answer.more else None)
    return response


def jsonl(table: MetricTable) -> Iterator[bytes]:
    """A JSON object for each step."""
    for page in table.pages:
        yield b"".join(
            orjson.dumps(
                {
                    "step": row.step,
                    "attempt": row.attempt,
                    "created_at": rfc3339(row.created_at),
                    "metrics": {key: x for key, x in values.items() if not key.startswith(TIMINGS)},
                    "timings": {
                        key[len(TIMINGS) :]: x for key, x in values.items() if key.startswith(TIMINGS)
                    },
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for row, values in page
        )


def csv_lines(table: MetricTable) -> Iterator[bytes]:
    """A header and a line for each step; a cell without a number is empty."""
    lines: list[list[Any]] = [["step", "attempt", "created_at", *table.keys]]
    for page in itertools.chain([[]], table.pages):
        for row, values in page:
            cells = (values.get(key, "") for key in table.keys)
            lines.append([row.step, row.attempt, rfc3339(row.created_at), *cells])
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        yield text.getvalue().encode()
        lines.clear()


LINES: dict[str, tuple[Callable[[MetricTable], Iterator[bytes]], str]] = {
    "jsonl": (jsonl, JSONL),
    "csv": (csv_lines, CSV),
}
