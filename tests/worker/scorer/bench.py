"""What the scorer's tests do again and again: make requests, score until nothing waits, serve on a socket."""

import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

import httpx2
import uvicorn

from jobs.scoring_wire import ModelSource, ScoreItem, ScoreRequest
from jobs.settings import Settings
from rlhf_core.models import load_pair
from worker.scorer.app import create_app
from worker.scorer.sources import AllowedSources

PATIENCE_S = 180.0  # a scorer imports for a minute where the machine is overloaded


class CountingLoader:
    """Loads pairs and remembers which."""

    def __init__(self):
        self.loaded = []

    def __call__(self, policy, reference, *, bodies):
        self.loaded.append((policy, reference))
        return load_pair(policy, reference, bodies=bodies)


def request(tiny, *texts, **rest):
    return ScoreRequest(
        policy=ModelSource(path=str(tiny.adapter), base=str(tiny.base)),
        reference=ModelSource(path=str(tiny.base)),
        items=[ScoreItem(text=text) for text in texts],
        **rest,
    )


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def drain(batcher):
    while batcher.stats().waiting_requests:
        batcher.step()


def in_background(call):
    future = Future()
    threading.Thread(target=lambda: future.set_result(call())).start()
    return future


def settings_for(tmp_path, tiny, **rest):
    return Settings(data=tmp_path / "data", model_roots=[tiny.root], **rest)


@contextmanager
def serving(batcher, settings, folder, *, ready=None, token=None):
    """The application on a unix socket; nothing is scored until the test steps the batcher."""
    path = str(folder / "s.sock")
    app = create_app(
        batcher,
        AllowedSources(settings),
        ready or threading.Event(),
        max_timeout_s=settings.score_timeout_s,
        token=token,
    )
    server = uvicorn.Server(uvicorn.Config(app, uds=path, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    client = httpx2.Client(transport=httpx2.HTTPTransport(uds=path), base_url="http://s", timeout=PATIENCE_S)
    try:
        wait_until(lambda: server.started)
        yield client, path
    finally:
        client.close()
        server.should_exit = True
        thread.join()
