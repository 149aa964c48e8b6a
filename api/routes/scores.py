"""/v1/scores: how far a policy is from its reference on given texts."""

import time
from collections.abc import Mapping
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Body, Depends, Header, Request, Response

from api.auth import CallerDep, Owner
from api.deps import JobsDep, PartsDep, TraceId
from api.entity_tags import etag
from api.errors import InsufficientScope
from api.examples import SCORES
from api.json_lines import JsonLines
from api.json_response import json_response
from api.routes.jobs import REPLAYED, IdempotencyKey, document
from api.routing import BODY_PROBLEMS, TEXT, Responses, problems, v1_router
from api.schemas_jobs import JobDocument
from api.schemas_score_stream import StreamLine
from api.schemas_scores import ScoreList, ScoresRequest
from api.services.jobs import JobService
from api.services.score_jobs import as_job
from api.services.score_stream import ScoreStream
from api.services.scores import Answered, ScoreService
from api.waiting import while_wanted

router = v1_router("scores", "score")

Prefer = Annotated[
    str | None, Header(description="`respond-async` (RFC 7240): make a score job of it and answer 202.")
]
TIMING = TEXT | {"description": "Milliseconds by what they went to: resolve, queue, tokenize, compute, …"}
JOB = {"Location": TEXT, "ETag": TEXT, "Preference-Applied": TEXT, "Idempotency-Replayed": REPLAYED}
ANSWERS: Responses = {
    200: {"headers": {"Server-Timing": TIMING}},
    202: {
        "model": JobDocument,
        "description": "A score job, as `Prefer: respond-async` asked",
        "headers": JOB,
    },
}
LINES: Responses = {
    200: {
        "model": StreamLine,
        "description": "One JSON object a line: items as they are done, then the summary",
    }
}


async def _service(parts: PartsDep) -> ScoreService:
    return ScoreService(parts.models, parts.scorer, parts.settings)


Texts = Annotated[ScoresRequest, Body(openapi_examples=SCORES)]
ScoresDep = Annotated[ScoreService, Depends(_service)]


@router.post(
    "/scores",
    operation_id="scores_create",
    summary="Score texts",
    response_model=ScoreList,
    responses=ANSWERS | BODY_PROBLEMS | problems(409, 410, 504),
)
async def create(
    request: Texts,
    caller: CallerDep,
    scores: ScoresDep,
    jobs: JobsDep,
    http: Request,
    trace_id: TraceId,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Per token: both log-probabilities, k1, k3, exact KL(policy ‖ reference) and entropy, in nats.

    With `Prefer: respond-async` the texts become a score job instead, which the key's scope jobs:write allows; an
    Idempotency-Key is for that job.
    """
    if wants_job(prefer):
        if "jobs:write" not in caller.scopes:
            raise InsufficientScope(
                "Prefer: respond-async makes a job: this needs a key with the scope jobs:write"
            )
        return await run_sync(_queued, jobs, request, caller.owner, idempotency_key, trace_id)

    async def answer() -> Response:
        return await run_sync(_written, await scores.score(request, caller.owner))

    return await while_wanted(http, answer())


@router.post(
    "/scores/stream",
    operation_id="scores_stream",
    summary="Score texts, line by line",
    status_code=200,
    response_class=JsonLines,
    responses=LINES | BODY_PROBLEMS | problems(504),
)
async def stream(request: Texts, owner: Owner, scores: ScoresDep, parts: PartsDep, http: Request) -> Response:
    """The body of POST /v1/scores, of as many items as the body holds; answered by one line per item.

    An item that cannot be scored has a line with its `error`. Errors before the first line are problems; after it
    the summary, which is always the last line, says in `complete` and `error` that items are missing.
    """

    async def begun() -> Response:
        asked = await scores.asked_as_stream(request, owner)
        lines = ScoreStream(asked, parts.scorer, patience_s=parts.settings.score_timeout_s).lines()
        return JsonLines(await anext(lines), lines)

    return await while_wanted(http, begun())


def wants_job(prefer: str | None) -> bool:
    """True if one of the preferences of the header is respond-async."""
    return any(
        preference.partition(";")[0].strip().lower() == "respond-async"
        for preference in (prefer or "").split(",")
    )


def server_timing(spent: Mapping[str, float]) -> str:
    """Seconds as the header's milliseconds."""
    return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in spent.items())


def _written(answered: Answered) -> Response:
    began = time.perf_counter()
    response = json_response(answered.document())
    spent = answered.spent | {"serialize": time.perf_counter() - began}
    response.headers["Server-Timing"] = server_timing(spent)
    return response


def _queued(
    jobs: JobService, request: ScoresRequest, owner: str, idempotency_key: str | None, trace_id: str | None
) -> Response:
    created = jobs.create(as_job(request), owner, idempotency_key, trace_id)
    headers = {
        "Location": f"/v1/jobs/{created.job.id}",
        "ETag": etag(created.job.version),
        "Preference-Applied": "respond-async",
    }
    if created.replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(document(jobs, created.job).model_dump_json(), 202, headers, "application/json")
