"""The composition root: which parts the API is made of. `uvicorn api.app:create_app --factory` runs it."""

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from api import browser, openapi, problems, request_log
from api.assembly import Loop, assemble
from api.audit import AuditTrail
from api.compression import Compression
from api.limits import BodyLimit
from api.polls import Polls
from api.routes import (
    api_keys,
    checkpoints,
    divergences,
    docs,
    events,
    files,
    health,
    info,
    job_data,
    job_live,
    jobs,
    logs,
    metrics,
    models,
    scores,
    service_metrics,
    tokens,
    webhooks,
    workers,
)
from api.scorer import HttpScorer
from api.services.feeds import Feeds
from api.services.live import Live
from api.termination import on_termination
from api.version import VERSION
from jobs.ports import Broker, Scorer
from jobs.queue import CeleryBroker
from jobs.settings import Settings
from jobs.sql_store import open_store
from jobs.store import Store

STOP_TIMEOUT_S = 5.0
THREADS = 56  # of the routes; what waits for scores needs none meanwhile
ROUTERS = (
    job_live.router,
    events.router,
    health.router,
    service_metrics.router,
    info.router,
    docs.router,
    scores.router,
    tokens.router,
    divergences.router,
    models.router,
    models.changing,
    jobs.router,
    jobs.changing,
    job_data.router,
    metrics.router,
    logs.router,
    checkpoints.router,
    checkpoints.changing,
    files.router,
    workers.router,
    webhooks.router,
    api_keys.router,
    api_keys.anybodys,
)
log = structlog.get_logger("kleash.api")


def create_app(
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    broker: Broker | None = None,
    scorer: Scorer | None = None,
) -> FastAPI:
    """The application. What is not given comes from the environment, and logs then go to stderr as JSON.

    Store and scorer that it makes itself are closed when it shuts down.
    """
    if settings is None:
        settings = Settings()
        request_log.configure()
    own = AsyncExitStack()
    if store is None:
        store = own.enter_context(closing(open_store(settings)))
    broker = broker or CeleryBroker(settings.broker_url.get_secret_value())
    if scorer is None:
        token = settings.scorer_token
        scorer = HttpScorer(*settings.scorer_urls, token=None if token is None else token.get_secret_value())
        own.push_async_callback(scorer.aclose)
    parts, loops, wake = assemble(settings, store, broker, scorer)

    app = FastAPI(
        title="kleash",
        version=VERSION,
        summary="Per-token KL of a language model from its reference, and PPO on a leash.",
        openapi_url=None,  # FastAPI would write the document anew for each request; routes/docs.py has it ready
        docs_url=None,  # FastAPI's page loads scripts from elsewhere; routes/docs.py has ours
        redoc_url=None,
        lifespan=_running(parts.live, parts.feeds, *loops, wake=wake, own=own),
        openapi_tags=openapi.TAGS,
        separate_input_output_schemas=False,
    )
    app.state.parts = parts
    larger = {("POST", "/v1/files"): settings.max_file_bytes}
    if settings.gzip:
        app.add_middleware(Compression)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, larger=larger)
    app.add_middleware(AuditTrail, store=store)
    app.add_middleware(Polls, parts=parts)
    app.add_middleware(request_log.RequestLog, counts=parts.requests)
    browser.install(app, settings)  # added last: outermost
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    openapi.complete(app)
    return app


def _running(
    live: Live, feeds: Feeds, *loops: Loop, wake: Callable[[], None], own: AsyncExitStack
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan during which `live` and `feeds` poll and each loop has a thread.

    `wake` ends a pause when they shall stop; `own` is closed at the end.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        stop = threading.Event()
        threads = [
            threading.Thread(target=_run_or_end, args=(loop, stop), name=type(loop).__name__, daemon=True)
            for loop in loops
        ]
        for thread in threads:
            thread.start()
        async with feeds.running(), live.running():
            with on_termination(live.stop):
                yield
        stop.set()
        wake()
        for thread in threads:
            thread.join(STOP_TIMEOUT_S)
        await own.aclose()

    return lifespan


def _run_or_end(loop: Loop, stop: threading.Event) -> None:
    """Run the loop. An error it does not expect ends the process, for without it jobs would wait for ever."""
    try:
        loop.run(stop)
    except Exception as error:  # the thread's edge
        name = type(loop).__name__
        log.error("loop_failed", loop=name, error=type(error).__qualname__, at=request_log.places(error))
        os.kill(os.getpid(), signal.SIGTERM)
