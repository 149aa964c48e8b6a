"""A client that leaves: what the scorer has of its request is given up, in the scorer process too."""

import asyncio
import json
import socket
import threading

import httpx2
import pytest
import uvicorn

from api.__main__ import server_config
from api.app import create_app
from api.scorer import HttpScorer
from tests import tiny_models
from tests.worker.scorer.bench import PATIENCE_S, CountingLoader, serving, settings_for, wait_until
from worker.scorer.batcher import Batcher
from worker.scorer.pairs import PairCache

ANY_PORT = ("127.0.0.1", 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("models"))


@pytest.fixture
def served(tmp_path, tiny, settings, store, broker):
    """The API on a port, and behind it a scorer over a real queue, in which nothing is scored."""

    registry = {
        "models": {"base": {"source": str(tiny.base)}},
        "default_policy": "base",
        "default_reference": "base",
    }
    (tmp_path / "tiny.json").write_text(json.dumps(registry))
    batcher = Batcher(PairCache(CountingLoader()), max_batch_tokens=256, max_queued_tokens=100_000)
    here = {"models_file": tmp_path / "tiny.json", "model_roots": [tiny.root]}
    ours = type(settings).model_validate(settings.model_dump() | here)
    with serving(batcher, settings_for(tmp_path, tiny, models_file=tmp_path / "tiny.json"), tmp_path) as (
        _,
        path,
    ):
        app = create_app(ours, store=store, broker=broker, scorer=HttpScorer(f"unix:{path}"))
        with socket.socket() as listening:
            listening.bind(ANY_PORT)
            server = uvicorn.Server(server_config(app, ours, timeout_graceful_shutdown=1))
            thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
            thread.start()
            wait_until(lambda: server.started)
            try:
                yield batcher, listening.getsockname()
            finally:
                server.should_exit = True
                thread.join(PATIENCE_S)


@pytest.mark.parametrize("path", ["/v1/scores", "/v1/scores/stream"])
def test_its_places_in_the_scorer_s_queue_are_free_again(served, path):
    batcher, address = served
    body = json.dumps({"input": [f"the cat sat {n}" for n in range(20)]}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address) as client:
        client.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        expected = 1 if path == "/v1/scores" else 3  # groups of 8
        wait_until(lambda: batcher.stats().waiting_requests == expected)
    wait_until(lambda: batcher.stats().waiting_requests == 0)
    stats = batcher.stats()
    assert (stats.abandoned_requests, stats.queued_tokens, stats.items) == (expected, 0, 0)


def test_a_504_says_where_the_time_went_and_nothing_was_computed(served):
    batcher, (host, port) = served
    body = {"input": "the cat sat", "request_timeout_s": 1.0}
    late = httpx2.post(f"http://{host}:{port}/v1/scores", json=body, trust_env=False, timeout=PATIENCE_S)
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    spent = late.json()["context"]
    assert spent.pop("queue_s") > 0.1  # of what the API has left it
    assert spent == {"tokenize_s": 0, "compute_s": 0}
    stats = batcher.stats()
    assert (stats.expired_requests, stats.waiting_requests, stats.items) == (1, 0, 0)


def test_who_stops_reading_a_stream_frees_them_too(served):
    """After the first lines: what is in flight is given up, what has not begun never begins."""
    batcher, address = served
    body = json.dumps({"input": [f"the cat sat {n}" for n in range(80)]}).encode()
    head = b"POST /v1/scores/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: batcher.stats().waiting_requests == 4)
        while batcher.stats().items < 8:
            batcher.step()
        client.settimeout(PATIENCE_S)
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    wait_until(lambda: batcher.stats().waiting_requests == 0)
    assert batcher.stats().items < 80
