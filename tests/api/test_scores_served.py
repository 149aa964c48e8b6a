"""POST /v1/scores and the scorer behind it: a real one, one that keeps many waiting, and none."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.scorer import MAX_WAITING, HttpScorer
from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable
from jobs.scoring_wire import QUANTITIES, ModelSource, ScoreItem, ScoreRequest
from tests import tiny_models
from tests.api.blocking_scorer import blocking
from tests.api.byte_scorer import post, replying, stream
from tests.api.offsets import HARD_TEXTS, assert_any_ids_hold, assert_offsets_hold

PATIENCE_S = 180.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_models.build(tmp_path_factory.mktemp("models"))


@pytest.fixture
def real_scorer(tmp_path, tiny):
    """`python -m worker.scorer` on a unix socket, ready, and settings under which the API finds its models."""
    models = {"base": {"source": str(tiny.base)}, "tuned": {"source": str(tiny.adapter), "base": "base"}}
    registry = {"models": models, "default_policy": "tuned", "default_reference": "base"}
    (tmp_path / "models.json").write_text(json.dumps(registry))
    environment = os.environ | {
        "KLEASH_SCORER_URL": f"unix:{tmp_path}/scorer.sock",
        "KLEASH_MODELS_FILE": str(tmp_path / "models.json"),
        "KLEASH_MODEL_ROOTS": json.dumps([str(tiny.root)]),
        "KLEASH_DATA": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "worker.scorer"], env=environment)
    scorer = HttpScorer(environment["KLEASH_SCORER_URL"])
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not scorer.ready():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield scorer
    finally:
        process.kill()
        process.wait()


def test_end_to_end(settings, store, broker, real_scorer, tiny, tmp_path):
    models = {"models_file": tmp_path / "models.json", "model_roots": [tiny.root]}
    settings = type(settings).model_validate(settings.model_dump() | models)
    app = create_app(settings, store=store, broker=broker, scorer=real_scorer)
    with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1)) as client:
        texts = ["the cat sat on the mat", {"prompt": "日本", "completion": "語 👩‍👩‍👧 e\u0301"}]
        found = post(client, {"input": texts, "quantities": list(QUANTITIES)})
        for score, text in zip(found["data"], texts, strict=True):
            raw = (text if isinstance(text, str) else text["prompt"] + text["completion"]).encode()
            tokens = score["tokens"]
            spans = list(zip(tokens["start"], tokens["end"], strict=True))
            assert b"".join(raw[start:end] for start, end in spans) == raw
            assert tokens["kl"][0] is None
            for t in range(len(spans)):
                assert tokens["scored"][t] is (tokens["kl"][t] is not None)
                if tokens["scored"][t]:
                    ours, theirs = tokens["policy_logprob"][t], tokens["reference_logprob"][t]
                    assert tokens["k1"][t] == pytest.approx(ours - theirs, abs=1e-5)
                    assert tokens["kl"][t] > 0
        assert found["data"][1]["tokens"]["scored"].index(True) > 1
        assert found["numerics"]["weights_dtype"] == "float32"
        weights = (tiny.base / "model.safetensors").read_bytes()
        assert found["reference"]["weights_sha256"] == hashlib.sha256(weights).hexdigest()
        assert found["policy"]["weights_sha256"] != found["reference"]["weights_sha256"]

        *lines, last = stream(client, {"input": texts, "quantities": list(QUANTITIES), "numerics": "strict"})
        sums = [line["sums"]["kl"] for line in sorted(lines, key=lambda line: line["index"])]
        assert sums == pytest.approx([score["sums"]["kl"] for score in found["data"]], rel=1e-4)
        assert last["complete"] is True
        assert (last["policy"], last["reference"]) == (found["policy"], found["reference"])
        timing = client.post("/v1/scores", json={"input": "the cat"}).headers["server-timing"]
        spent = dict(part.split(";dur=") for part in timing.split(", "))
        assert list(spent) == ["resolve", "queue", "tokenize", "compute", "transfer", "serialize"]
        assert float(spent["compute"]) > 0

        for text in HARD_TEXTS:
            assert_offsets_hold(client, text)
        assert_any_ids_hold(client)
        for model, code in ((str(tiny.root / "none"), "unknown_model"), ("tuned", None)):
            tokens = client.post("/v1/tokenize", json={"model": model, "input": "the cat"}).json()
            assert tokens.get("code") == code

        drift = post(client, {"input": texts, "attribution": True})["attribution"]
        assert drift["kl"] == pytest.approx(sum(score["sums"]["kl"] for score in found["data"]), rel=1e-5)
        for groups in (drift["positions"], drift["classes"], drift["tokens"]):  # 12 tokens: all are listed
            assert sum(group["share"] for group in groups) == pytest.approx(1)

        chat = {
            "messages": [{"role": "user", "content": "日本?"}, {"role": "assistant", "content": "the cat"}]
        }
        ids = found["data"][0]["tokens"]["ids"]
        by_ids, answer = post(client, {"input": [ids, chat], "top_k": 2})["data"]
        assert by_ids["tokens"]["text"] == found["data"][0]["tokens"]["text"]
        assert by_ids["tokens"]["kl"][1:] == pytest.approx(found["data"][0]["tokens"]["kl"][1:], rel=1e-3)
        assert answer["tokens"]["text"][-1] == "<|end|>"
        scored = [t for t, is_scored in enumerate(answer["tokens"]["scored"]) if is_scored]
        assert "".join(answer["tokens"]["text"][t] for t in scored) == "the cat<|end|>"
        assert answer["top"]["ids"][0] is None
        assert all(len(answer["top"]["text"][t]) == 2 for t in scored)
        for t in scored:
            terms, rest = answer["top"]["kl_term"][t], answer["top"]["kl_rest"][t]
            assert min(*terms, rest) > 0
            assert sum(terms) + rest == pytest.approx(answer["tokens"]["kl"][t], rel=1e-6)
        assert answer["top"]["kl_rest"][0] is None
        for wrong, code in (([5, 400], "token_id_out_of_range"), ([5], "empty_input")):
            assert post(client, {"input": wrong}, 422)["code"] == code

        same = post(client, {"policy": "base", "reference": str(tiny.base), "input": "the cat"})
        assert same["data"][0]["sums"]["kl"] == 0.0
        assert (
            post(client, {"reference": str(tiny.foreign), "input": "ab cd"}, 422)["code"]
            == "tokenizer_mismatch"
        )
        folder = tiny_models.save_padded(tiny, tiny.root / "wider", rows=47)
        wider = {"policy": "base", "reference": str(folder), "input": "ab cd"}
        assert post(client, wider, 422)["code"] == "tokenizer_mismatch"
        over_both = post(client, wider | {"vocab_mismatch": "intersect"})["tokenizer"]
        assert {name: size for name, size in over_both.items() if name.endswith("_size")} == {
            "vocab_size": 377,
            "policy_vocab_size": 377,
            "reference_vocab_size": 424,
        }
        refused = post(client, {"input": "x" * 400}, 413)
        assert refused["code"] == "input_too_long"
        assert refused["context"]["limit"] == tiny_models.CONTEXT < refused["context"]["actual"]
        assert post(client, {"input": ["ab cd", "x" * 400]})["partial"] is True
        check_models(client, found)


def check_models(client, found):
    """Every model is in memory; one that is given up comes back when it is asked for, or needed."""
    seen = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert {name: model["state"] for name, model in seen.items()} == {"base": "loaded", "tuned": "loaded"}
    assert seen["base"]["tokenizer_sha256"] == found["tokenizer"]["sha256"]
    assert (seen["base"]["vocab_size"], seen["base"]["dtype"]) == (377, "float32")
    assert seen["tuned"]["bytes"] < seen["base"]["bytes"]
    for name, role in (("base", "reference"), ("tuned", "policy")):
        assert seen[name]["weights_sha256"] == found[role]["weights_sha256"]

    def until(name, state):
        deadline = time.monotonic() + PATIENCE_S
        while client.get(f"/v1/models/{name}").json()["state"] != state:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert client.post("/v1/models/base/unload").status_code == 202
    until("base", "unloaded")
    until("tuned", "unloaded")  # the pair that it was part of
    assert client.post("/v1/models/base/load").status_code in (200, 202)
    until("base", "loaded")
    client.post("/v1/models/base/unload")  # and at once a request that needs it
    again = post(client, {"input": ["the cat sat on the mat"]})
    assert again["data"][0]["tokens"]["kl"][1:] == pytest.approx(
        found["data"][0]["tokens"]["kl"][1:], rel=1e-5
    )


def test_requests_that_wait_for_scores_leave_threads_to_the_other_routes(client, scorer):
    """As many as the API lets wait, and a route that needs a thread."""
    held, arrived = threading.Event(), threading.Semaphore(0)

    def answer(request):
        arrived.release()
        assert held.wait(PATIENCE_S)
        return replying(0.5)(request)

    scorer.answer = answer
    with ThreadPoolExecutor(MAX_WAITING + 1) as pool:
        waiting = [pool.submit(post, client, {"input": "abc"}) for _ in range(MAX_WAITING)]
        try:
            for _ in waiting:
                assert arrived.acquire(timeout=PATIENCE_S / 4)
            assert pool.submit(client.get, "/v1/models").result(PATIENCE_S / 4).status_code == 200
        finally:
            held.set()
        for future in waiting:
            future.result(PATIENCE_S)


def test_a_client_that_waits_in_many_places_leaves_some_to_the_others():
    """A scorer that answers nobody until told: of one client's 60 wait 32, twice the 16 that are left."""
    held, arrived = threading.Event(), threading.Semaphore(0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            arrived.release()
            assert held.wait(PATIENCE_S)
            self.send_error(504)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = MAX_WAITING  # all connect at once

    def by(client):
        source = ModelSource(path="a")
        return ScoreRequest(policy=source, reference=source, items=[ScoreItem(text="c")], client=client)

    with (
        Server(("127.0.0.1", 0), Handler) as server,
        blocking(f"http://127.0.0.1:{server.server_port}") as scorer,
        ThreadPoolExecutor(MAX_WAITING) as pool,
    ):
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        waiting = []
        for client, places in (("many", 32), ("other", 11), ("third", 4)):  # two thirds of 48, 16 and 5, up
            waiting += [pool.submit(scorer.score, by(client), timeout_s=PATIENCE_S) for _ in range(places)]
            for _ in range(places):
                assert arrived.acquire(timeout=PATIENCE_S)
            for _ in range(60 - places):
                with pytest.raises(ScorerOverloaded) as refused:
                    scorer.score(by(client), timeout_s=PATIENCE_S)
            assert refused.value.retry_after_s >= 1
        held.set()
        assert {type(future.exception(PATIENCE_S)) for future in waiting} == {DeadlineExceeded}
        with pytest.raises(DeadlineExceeded):  # a failed request has given its place back
            scorer.score(by("many"), timeout_s=PATIENCE_S)
        server.shutdown()


def test_a_scorer_that_is_not_there_is_unavailable(tmp_path):
    for url in (f"unix:{tmp_path}/nothing.sock", "http://127.0.0.1:9"):
        request = ScoreRequest(
            policy=ModelSource(path="a"), reference=ModelSource(path="b"), items=[ScoreItem(text="c")]
        )
        with blocking(url) as scorer:
            assert scorer.ready() is False
            with pytest.raises(ScorerUnavailable):
                scorer.score(request, timeout_s=1.0)
