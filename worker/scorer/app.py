"""The scorer over HTTP, for the API: POST /score, /tokenize, /load, /unload, GET /models, /ready, /health; for a
worker: POST /sleep, /wake.

Answers are binary (jobs/scoring_wire.py) and say in Server-Timing where the time went; refusals are JSON
`{"code", "detail", "context"}`.
"""

import asyncio
import hmac
import threading
from concurrent.futures import Future
from typing import Annotated, Any

from anyio import CapacityLimiter, fail_after
from anyio.to_thread import run_sync
from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.errors import DeadlineExceeded, JobError, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.residents import Residents
from jobs.scoring_wire import MEDIA_TYPE, ModelSource, ScoreReply, ScoreRequest, encode_reply
from jobs.tokenizing_wire import TokenizeRequest, encode_tokens
from rlhf_core.kernels import scores as kernels
from worker.scorer.batcher import Batcher, ScorerDraining
from worker.scorer.sources import AllowedSources
from worker.scorer.tokens import Tokenizers

MAX_SLEEP_S = 3600.0  # whoever wants more asks again
OPEN = frozenset({"/health", "/ready"})
STATUS = {"input_too_long": 413}  # other refusals are 422


def create_app(
    batcher: Batcher,
    sources: AllowedSources,
    ready: threading.Event,
    *,
    max_timeout_s: float,
    token: str | None = None,
) -> FastAPI:
    """The application; `ready` is set once the default pair is loaded and warm.

    With a token, all but /health and /ready asks for `Authorization: Bearer` and it.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if token is not None:
        app.add_middleware(TokenDemanded, token=token)

    @app.post("/score")
    async def score(request: Request, timeout_s: Annotated[float, Header(gt=0)] = max_timeout_s) -> Response:
        parsed = ScoreRequest.model_validate_json(await request.body())
        pair = sources.weights(parsed.policy), sources.weights(parsed.reference)
        timeout_s = min(timeout_s, max_timeout_s)
        waiting = batcher.submit(parsed, pair, timeout_s=timeout_s)
        reply = await _while_wanted(request, batcher, waiting, timeout_s=timeout_s)
        headers = {"Server-Timing": _server_timing(reply)}
        return Response(encode_reply(reply), media_type=MEDIA_TYPE, headers=headers)

    tokenizers, one_at_a_time = Tokenizers(), CapacityLimiter(1)  # it shares the models' cores

    @app.post("/tokenize")
    async def tokenize(
        request: Request, timeout_s: Annotated[float, Header(gt=0)] = max_timeout_s
    ) -> Response:
        parsed = TokenizeRequest.model_validate_json(await request.body())
        source = sources.weights(parsed.model)
        try:
            with fail_after(min(timeout_s, max_timeout_s)):
                reply = await run_sync(tokenizers.answer, parsed, source, limiter=one_at_a_time)
        except TimeoutError:
            raise DeadlineExceeded("not tokenised in time") from None
        return Response(encode_tokens(reply), media_type=MEDIA_TYPE)

    @app.get("/ready")
    async def is_ready() -> Response:
        if batcher.closed:
            return _refusal(503, "draining", "the scorer is shutting down")
        if ready.is_set():  # also asleep: the API behind it can do all but score
            return JSONResponse({"status": "ready" if batcher.rest.over else "asleep"})
        return _refusal(503, "starting", "the default pair is being loaded and warmed up")

    @app.post("/sleep")
    def sleep(who: str, for_s: Annotated[float, Query(gt=0, le=MAX_SLEEP_S)]) -> Response:
        if batcher.rest.sleep(who, for_s):
            return Response(status_code=204)
        return _refusal(503, "not_asleep", "the models were not given up in time")

    @app.post("/wake", status_code=204)
    def wake(who: str) -> None:
        batcher.rest.wake(who)

    @app.get("/models")
    async def models() -> dict[str, Any]:
        return Residents(models=batcher.residence.models()).model_dump()

    @app.post("/load", status_code=202)
    async def load(request: Request) -> None:
        await wish(request, loaded=True)

    @app.post("/unload", status_code=202)
    async def unload(request: Request) -> None:
        await wish(request, loaded=False)

    async def wish(request: Request, *, loaded: bool) -> None:
        source = sources.weights(ModelSource.model_validate_json(await request.body()))
        if batcher.closed:
            raise ScorerDraining("the scorer is shutting down")
        batcher.residence.wish(source, loaded=loaded)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "kernels": kernels.status(), **batcher.stats().document()}

    app.add_exception_handler(JobError, _known)
    app.add_exception_handler(ValidationError, _malformed)
    return app


class TokenDemanded:
    """Answers 401 to whoever does not show the token, before anything of the request is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._wanted = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            shown = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(shown, self._wanted):
                refusal = _refusal(
                    401, "unauthenticated", "the scorer's token (KLEASH_SCORER_TOKEN) is needed"
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _while_wanted(
    request: Request, batcher: Batcher, waiting: Future[ScoreReply], *, timeout_s: float
) -> ScoreReply:
    """The answer, unless the client leaves or the time is up first; then the request is given up."""
    answer = asyncio.wrap_future(waiting)
    gone = asyncio.create_task(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {answer, gone}
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if gone.done():
            raise DeadlineExceeded("nobody waits for the answer")
        raise batcher.expire(waiting)
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _server_timing(reply: ScoreReply) -> str:
    return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in reply.spent.items())


async def _known(request: Request, error: Exception) -> Response:
    if isinstance(error, ScoringRefused):
        return _refusal(STATUS.get(error.code, 422), error.code, error.detail, error.context)
    if isinstance(error, ScorerOverloaded):
        headers = {"Retry-After": str(error.retry_after_s)}
        return _refusal(503, "overloaded", "the queue is full", headers=headers)
    if isinstance(error, ScorerDraining):
        return _refusal(503, "draining", str(error))
    if isinstance(error, ScorerUnavailable):
        return _refusal(503, "unavailable", str(error))
    assert isinstance(error, DeadlineExceeded)
    return _refusal(504, "deadline_exceeded", str(error), error.spent)


async def _malformed(request: Request, error: Exception) -> Response:
    return _refusal(422, "validation_error", "not a request of jobs/scoring_wire.py")


def _refusal(
    status: int,
    code: str,
    detail: str,
    context: dict[str, Any] | None = None,
    *,
    headers: dict[str, str] | None = None,
) -> Response:
    body = {"code": code, "detail": detail, "context": context or {}}
    return JSONResponse(body, status, headers=headers)
