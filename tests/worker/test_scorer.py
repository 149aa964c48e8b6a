"""The scorer: its batcher with real models, its HTTP edge with real sockets, and the real process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

import httpx2
import numpy as np
import pytest
import torch
import uvicorn

from jobs.errors import ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import ItemError, ItemScores, ModelSource, ScoreItem, ScoreRequest, decode_reply
from jobs.settings import RegisteredModel, Registry, Settings
from rlhf_core.models import WeightSource, load_pair
from tests import tiny_models
from worker.scorer.app import create_app
from worker.scorer.batcher import Batcher, estimate_tokens
from worker.scorer.pairs import PairCache
from worker.scorer.sources import AllowedSources, default_pair

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_models.build(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pair_key(tiny):
    return WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base))


class CountingLoader:
    def __init__(self):
        self.loaded = []

    def __call__(self, policy, reference):
        self.loaded.append((policy, reference))
        return load_pair(policy, reference)


@pytest.fixture
def loader():
    return CountingLoader()


@pytest.fixture
def batcher(loader):
    return Batcher(PairCache(loader), max_batch_tokens=256, max_queued_tokens=1000)


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


# -- the batcher, one step at a time --------------------------------------------------------------


def test_requests_for_one_pair_share_a_batch_and_keep_their_own_answers(tiny, pair_key, batcher):
    one = batcher.submit(request(tiny, "the cat sat on the mat"), pair_key)
    two = batcher.submit(request(tiny, "the dog sat on the log", "the mat sat on the cat"), pair_key)
    batcher.step()
    assert batcher.stats().batches == 1
    assert batcher.stats().scored_items == 3
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(tiny.base)
    decoded = [tokenizer.decode(item.token_ids) for f in (one, two) for item in f.result(0).items]
    assert decoded == ["the cat sat on the mat", "the dog sat on the log", "the mat sat on the cat"]


def test_another_temperature_is_another_batch(tiny, pair_key, batcher):
    cold = batcher.submit(request(tiny, "the cat sat", temperature=0.5), pair_key)
    warm = batcher.submit(request(tiny, "the cat sat", temperature=1.0), pair_key)
    drain(batcher)
    assert batcher.stats().batches == 2
    kl_cold, kl_warm = (np.nansum(future.result(0).items[0].quantities["kl"]) for future in (cold, warm))
    assert kl_cold != pytest.approx(kl_warm, rel=0.01)


def test_an_item_that_cannot_be_scored_does_not_fail_the_others(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, "the cat", "", "x" * 400, "the dog", quantities=("kl",)), pair_key)
    drain(batcher)
    first, empty, long, last = future.result(0).items
    assert isinstance(first, ItemScores)
    assert list(first.quantities) == ["kl"]
    assert isinstance(last, ItemScores)
    assert (empty.code, long.code) == ("empty_input", "input_too_long")


def test_a_request_of_failures_alone_is_answered(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, ""), pair_key)
    batcher.step()
    assert [type(item) for item in future.result(0).items] == [ItemError]
    assert batcher.stats().batches == 0


def test_a_small_request_does_not_wait_for_the_whole_of_a_large_one(tiny, pair_key, batcher):
    large = batcher.submit(request(tiny, *["the cat sat on the mat " * 4] * 31), pair_key)
    batcher.step()
    small = batcher.submit(request(tiny, "hi!"), pair_key)
    batcher.step()  # the large one still leads; now it goes behind
    batcher.step()
    assert small.done()
    assert not large.done()
    drain(batcher)
    assert len(large.result(0).items) == 31


def test_the_queue_is_bounded_and_says_when_to_come_back(tiny, pair_key, batcher):
    accepted = [batcher.submit(request(tiny, "x" * 1197), pair_key) for _ in range(2)]  # 400 tokens each
    with pytest.raises(ScorerOverloaded) as refused:
        batcher.submit(request(tiny, "x" * 1197), pair_key)
    assert 1 <= refused.value.retry_after_s <= 60
    accepted[0].cancel()
    batcher.submit(request(tiny, "x" * 1197), pair_key)


def test_a_request_over_the_whole_queue_is_refused_for_good(tiny, pair_key, batcher):
    big = request(tiny, "x" * 3000)
    assert estimate_tokens(big) == 1001
    with pytest.raises(ScoringRefused) as refused:
        batcher.submit(big, pair_key)
    assert refused.value.code == "input_too_long"


def test_abandoned_requests_are_dropped_unscored(tiny, pair_key, batcher):
    gone = batcher.submit(request(tiny, "the cat sat"), pair_key)
    stays = batcher.submit(request(tiny, "the dog sat"), pair_key)
    gone.cancel()
    drain(batcher)
    assert stays.result(0).items
    stats = batcher.stats()
    assert (stats.abandoned_requests, stats.scored_items, stats.queued_tokens) == (1, 1, 0)


def test_models_that_cannot_be_loaded_fail_their_own_requests_only(tiny, pair_key, batcher):
    nowhere = (WeightSource(str(tiny.root / "nothing")), pair_key[1])
    foreign = (WeightSource(str(tiny.base)), WeightSource(str(tiny.foreign)))
    missing = batcher.submit(request(tiny, "the cat"), nowhere)
    mixed = batcher.submit(request(tiny, "the cat"), foreign)
    good = batcher.submit(request(tiny, "the cat"), pair_key)
    drain(batcher)
    assert missing.exception(0).code == "model_load_failed"
    assert str(tiny.root) not in missing.exception(0).detail  # it goes to clients
    assert mixed.exception(0).code == "tokenizer_mismatch"
    assert good.result(0).items


def test_a_batch_that_breaks_fails_its_requests_and_the_queue_goes_on(tiny, pair_key, loader):
    class Breaking(CountingLoader):
        def __call__(self, policy, reference):
            pair = super().__call__(policy, reference)
            if policy.base is None:
                pair.tokenizer = None  # the first use of it raises
            return pair

    batcher = Batcher(PairCache(Breaking()), max_batch_tokens=256, max_queued_tokens=1000)
    broken = batcher.submit(request(tiny, "the cat"), (pair_key[1], pair_key[1]))
    good = batcher.submit(request(tiny, "the cat"), pair_key)
    drain(batcher)
    assert isinstance(broken.exception(0), ScorerUnavailable)
    assert good.result(0).items


def test_pairs_are_kept_and_the_least_recently_used_is_given_up(tiny, pair_key, loader, batcher):
    other, third = (pair_key[1], pair_key[1]), (pair_key[1], pair_key[0])
    for key in (pair_key, other, pair_key, third, pair_key, other):
        batcher.submit(request(tiny, "the cat"), key)
        drain(batcher)
    assert loader.loaded == [pair_key, other, third, other]


def test_a_closed_batcher_finishes_what_it_has_and_takes_no_more(tiny, pair_key, batcher):
    future = batcher.submit(request(tiny, "the cat"), pair_key)
    batcher.close()
    with pytest.raises(ScorerUnavailable):
        batcher.submit(request(tiny, "the cat"), pair_key)
    batcher.run()  # returns once the queue is empty
    assert future.result(0).items


# -- which weights may be opened ------------------------------------------------------------------


def settings_for(tmp_path, tiny, **rest):
    return Settings(data=tmp_path / "data", model_roots=[tiny.root], **rest)


def test_only_registered_sources_and_folders_below_the_roots_are_opened(tmp_path, tiny):
    (tmp_path / "secret").mkdir()
    inside = tmp_path / "data" / "jobs"
    inside.mkdir(parents=True)
    (inside / "link").symlink_to(tmp_path / "secret")
    registry = tmp_path / "models.json"
    registry.write_text(json.dumps({"models": {"hub": {"source": "org/name"}}}))
    sources = AllowedSources(settings_for(tmp_path, tiny, models_file=registry))
    for path in (str(tiny.base), str(inside / "job_x" / "1" / "final"), "org/name"):
        assert sources.weights(ModelSource(path=path)) == WeightSource(path)
    for path in (
        str(tmp_path / "secret"),
        str(inside / "link"),
        str(inside / ".." / ".." / "secret"),
        "org/other",
        "/",
        "a\0b",
    ):
        for source in (ModelSource(path=path), ModelSource(path=str(tiny.adapter), base=path)):
            with pytest.raises(ScoringRefused) as refused:
                sources.weights(source)
            assert refused.value.code == "path_not_allowed"


def test_an_adapter_without_its_base_is_refused(tmp_path, tiny):
    with pytest.raises(ScoringRefused, match="base"):
        AllowedSources(settings_for(tmp_path, tiny)).weights(ModelSource(path=str(tiny.adapter)))


def test_the_default_pair_names_the_adapter_s_base():
    registry = Registry(
        models={"ref": RegisteredModel(source="/a"), "pol": RegisteredModel(source="/b", base="ref")},
        default_policy="pol",
        default_reference="ref",
    )
    assert default_pair(registry) == (ModelSource(path="/b", base="/a"), ModelSource(path="/a"))
    assert default_pair(Registry()) is None


# -- over HTTP, with the batcher's thread held back -----------------------------------------------


@contextmanager
def serving(batcher, settings, folder, *, ready=None):
    """The application on a unix socket; nothing is scored until the test steps the batcher."""
    path = str(folder / "s.sock")
    app = create_app(
        batcher,
        AllowedSources(settings),
        ready or threading.Event(),
        max_timeout_s=settings.score_timeout_s,
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


def in_background(call):
    future = Future()
    threading.Thread(target=lambda: future.set_result(call())).start()
    return future


def test_two_clients_at_once_are_answered_from_one_batch(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        bodies = [request(tiny, text).model_dump_json() for text in ("the cat sat", "the dog sat")]
        posts = [in_background(lambda body=body: client.post("/score", content=body)) for body in bodies]
        wait_until(lambda: batcher.stats().waiting_requests == 2)
        batcher.step()
        replies = [decode_reply(post.result(PATIENCE_S).content) for post in posts]
    assert batcher.stats().batches == 1
    assert replies[0].items[0].token_ids.tolist() != replies[1].items[0].token_ids.tolist()
    assert (replies[0].weights_dtype, len(replies[0].tokenizer_sha256)) == ("float32", 64)


def test_a_full_queue_answers_503_with_retry_after(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        body = request(tiny, "x" * 2400).model_dump_json()
        waiting = in_background(lambda: client.post("/score", content=body))
        wait_until(lambda: batcher.stats().waiting_requests == 1)
        refused = client.post("/score", content=body)
        drain(batcher)
        assert waiting.result(PATIENCE_S).status_code == 200
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["code"] == "overloaded"


def test_a_client_that_leaves_is_dropped_from_the_queue(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (_, path):
        body = request(tiny, "the cat sat").model_dump_json().encode()
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            raw.sendall(b"POST /score HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: batcher.stats().waiting_requests == 1)
        wait_until(lambda: batcher.stats().waiting_requests == 0)
    assert batcher.stats().abandoned_requests == 1


def test_a_request_past_its_deadline_is_dropped(tmp_path, tiny, batcher):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        late = client.post(
            "/score", content=request(tiny, "the cat").model_dump_json(), headers={"timeout-s": "0.05"}
        )
    assert late.status_code == 504
    assert late.json()["code"] == "deadline_exceeded"
    assert batcher.stats().queued_tokens == 0


def test_readiness_is_not_health(tmp_path, tiny, batcher):
    ready = threading.Event()
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path, ready=ready) as (client, _):
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        ready.set()
        assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"items": [], "exec": 1}'])
def test_what_is_no_request_is_refused(tmp_path, tiny, batcher, body):
    with serving(batcher, settings_for(tmp_path, tiny), tmp_path) as (client, _):
        refused = client.post("/score", content=body)
    assert (refused.status_code, refused.json()["code"]) == (422, "validation_error")


# -- the process ----------------------------------------------------------------------------------


@pytest.fixture
def launch(tmp_path, tiny):
    """Starts `python -m worker.scorer`; whatever happens, nothing of it is left."""
    started = []

    def start(**rest):
        registry = {
            "models": {
                "ref": {"source": str(tiny.base)},
                "pol": {"source": str(tiny.adapter), "base": "ref"},
            },
            "default_policy": "pol",
            "default_reference": "ref",
        } | rest
        (tmp_path / "models.json").write_text(json.dumps(registry))
        environment = os.environ | {
            "KLEASH_SCORER_URL": f"unix:{tmp_path}/process.sock",
            "KLEASH_MODELS_FILE": str(tmp_path / "models.json"),
            "KLEASH_DATA": str(tmp_path / "data"),
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "worker.scorer"], env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        transport = httpx2.HTTPTransport(uds=f"{tmp_path}/process.sock")
        return process, httpx2.Client(transport=transport, base_url="http://s", timeout=PATIENCE_S)

    yield start
    for process in started:
        process.kill()
        process.communicate()


def is_ready(client):
    try:
        return client.get("/ready").status_code == 200
    except httpx2.TransportError:
        return False


def test_the_process_scores_refuses_and_stops(tiny, launch):
    process, client = launch()
    wait_until(lambda: is_ready(client) or process.poll() is not None)
    reply = client.post("/score", content=request(tiny, "the cat 👩‍👩‍👧", "x" * 400).model_dump_json())
    first, second = decode_reply(reply.content).items
    assert first.end[-1] == len("the cat 👩‍👩‍👧".encode())
    assert (first.quantities["kl"][1:] > 0).all()
    assert np.isnan(first.quantities["kl"][0])
    assert second.code == "input_too_long"

    outside = ScoreRequest(
        policy=ModelSource(path="/etc"),
        reference=ModelSource(path=str(tiny.base)),
        items=[ScoreItem(text="a b")],
    )
    refused = client.post("/score", content=outside.model_dump_json())
    assert (refused.status_code, refused.json()["code"]) == (422, "path_not_allowed")

    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM)


def test_a_default_pair_that_cannot_be_loaded_ends_the_process_with_one_sentence(tmp_path, launch):
    process, _ = launch(
        models={"ref": {"source": str(tmp_path / "nothing")}}, default_policy="ref", default_reference="ref"
    )
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "the default pair cannot be loaded" in errors
    assert "Traceback" not in errors
