"""The composition root: which parts the API is made of. `uvicorn api.app:create_app --factory` runs it."""

import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, closing
from typing import Protocol

import structlog
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from api import openapi, problems, request_log
from api.deps import Parts
from api.limits import BodyLimit
from api.routes import divergences, health, job_data, jobs, models, scores, webhooks
from api.scorer import HttpScorer
from api.services.analysis import RunAnalysis
from api.services.job_data import JobData
from api.services.jobs import JobService
from api.services.models import ModelResolver
from api.services.webhooks import WebhookService
from api.version import VERSION
from jobs.dispatcher import Dispatcher
from jobs.outbound import Outbound
from jobs.ports import Broker, Scorer
from jobs.queue import CeleryBroker
from jobs.reaper import Reaper
from jobs.settings import Settings
from jobs.sql_store import open_store
from jobs.store import Store
from jobs.system import SystemRng
from jobs.webhook_sender import WebhookSender

STOP_TIMEOUT_S = 5.0
THREADS = 56  # of the routes: api/scorer.py's MAX_WAITING wait for scores, the rest is for all else
log = structlog.get_logger("kleash.api")


class Loop(Protocol):
    """Something that runs in a thread of its own until it is told to stop."""

    def run(self, stop: threading.Event) -> None:
        """Return soon after `stop` is set."""
        ...


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
    own = ExitStack()
    if store is None:
        store = own.enter_context(closing(open_store(settings)))
    broker = broker or CeleryBroker(settings.broker_url.get_secret_value())
    if scorer is None:
        scorer = own.enter_context(closing(HttpScorer(*settings.scorer_urls)))
    dispatcher = Dispatcher(store, broker, settings)
    outbound = Outbound(settings.outbound_allow)
    sender = WebhookSender(store, outbound, every_s=settings.webhook_every_s)
    model_resolver, analysis = ModelResolver(settings, store), RunAnalysis(store)

    app = FastAPI(
        title="kleash",
        version=VERSION,
        summary="Per-token KL of a language model from its reference, and PPO on a leash.",
        docs_url=None,  # FastAPI's page loads scripts from elsewhere
        redoc_url=None,
        lifespan=_running(dispatcher, Reaper(store, settings), sender, wake=dispatcher.wake, own=own),
        separate_input_output_schemas=False,
    )
    app.state.parts = Parts(
        settings=settings,
        store=store,
        broker=broker,
        scorer=scorer,
        models=model_resolver,
        jobs=JobService(store, model_resolver, SystemRng(), dispatcher.wake, analysis, outbound),
        job_data=JobData(store, analysis, settings.artifacts),
        webhooks=WebhookService(store, outbound),
    )
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(request_log.RequestLog)  # added last: outermost
    problems.install(app)
    for part in (health, models, scores, divergences, jobs, job_data, webhooks):
        app.include_router(part.router)
    app.include_router(jobs.changing)
    openapi.complete(app)
    return app


def _running(
    *loops: Loop, wake: Callable[[], None], own: ExitStack
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A lifespan during which each loop has a thread; `wake` ends a pause when they shall stop.

    `own` is closed at its end.
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
        yield
        stop.set()
        wake()
        for thread in threads:
            thread.join(STOP_TIMEOUT_S)
        own.close()

    return lifespan


def _run_or_end(loop: Loop, stop: threading.Event) -> None:
    """Run the loop. An error it does not expect ends the process, for without it jobs would wait for ever."""
    try:
        loop.run(stop)
    except Exception as error:  # the thread's edge
        name = type(loop).__name__
        log.error("loop_failed", loop=name, error=type(error).__qualname__, at=request_log.places(error))
        os.kill(os.getpid(), signal.SIGTERM)
