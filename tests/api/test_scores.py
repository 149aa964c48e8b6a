"""POST /v1/scores: the document from a scorer's arrays, its refusals, and the real scorer behind it."""

import json
import math
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.app import create_app
from api.schemas_scores import ScoreList, ScoresRequest
from api.scorer import MAX_WAITING, HttpScorer
from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import (
    QUANTITIES,
    ItemError,
    ItemScores,
    ModelSource,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    decode_reply,
    encode_reply,
)
from tests import tiny_models

PATIENCE_S = 60.0


def byte_scores(item: ScoreItem, *, k1: float, names: tuple[str, ...] = QUANTITIES) -> ItemScores:
    """One token per byte; every scored k1 is `k1`, the other quantities are 1."""
    raw = ((item.prompt or "") + item.text).encode()
    first = max(len((item.prompt or "").encode()), 1)
    scored = np.arange(len(raw)) >= first
    return ItemScores(
        token_ids=np.frombuffer(raw, np.uint8).astype(np.int32),
        start=np.arange(len(raw), dtype=np.int32),
        end=np.arange(1, len(raw) + 1, dtype=np.int32),
        scored=scored,
        quantities={
            name: np.where(scored, k1 if name == "k1" else 1.0, np.nan).astype(np.float32) for name in names
        },
    )


def replying(*k1: float):
    """A scorer's answer with one k1 per item, sent through the wire format."""

    def answer(request: ScoreRequest) -> ScoreReply:
        items = [
            byte_scores(item, k1=value, names=request.quantities)
            if item.text
            else ItemError(code="empty_input", detail="no token is left to score")
            for item, value in zip(request.items, k1, strict=True)
        ]
        reply = ScoreReply(items=items, tokenizer_sha256="ab" * 32, vocab_size=256, weights_dtype="float32")
        return decode_reply(encode_reply(reply))

    return answer


T_1 = 12.7062047361746933  # the 97.5 % quantile of Student's t with 1 degree of freedom, for two clusters
UNKNOWN = {"se": None, "low": None, "high": None}


def interval(mean, se):
    """The estimate of two clusters."""
    values = {"mean": mean, "se": se, "low": mean - T_1 * se, "high": mean + T_1 * se}
    return {name: pytest.approx(value) for name, value in values.items()}


def post(client, body, status=200):
    response = client.post("/v1/scores", json=body)
    assert response.status_code == status, response.text
    if status == 200:
        ScoreList.model_validate_json(response.content, strict=True)  # what OpenAPI promises
    return response.json()


def test_one_text_with_the_default_pair(client, scorer):
    scorer.answer = replying(0.5)
    found = post(client, {"input": "abc"})
    (request,) = scorer.requests
    assert request.reference == ModelSource(path="org/base")
    assert request.policy.base == "org/base"
    assert (found["policy"], found["reference"]) == ({"id": "tuned"}, {"id": "base"})
    (score,) = found["data"]
    assert (score["n_tokens"], score["n_scored"], score["sampled_from"]) == (3, 2, "unknown")
    assert score["tokens"]["ids"] == [97, 98, 99]
    assert score["tokens"]["text"] == ["a", "b", "c"]
    assert score["tokens"]["k1"] == [None, 0.5, 0.5]
    assert score["tokens"]["scored"] == [False, True, True]
    assert score["sums"]["k1"] == 1.0
    assert score["means"]["k1"] == 0.5
    assert score["adjusted_reward"] is None
    assert set(score["sums"]) == {"policy_logprob", "reference_logprob", "k1", "k3", "kl", "entropy"}
    assert found["summary"] is None
    assert found["partial"] is False
    assert found["usage"] == {"input_tokens": 3, "scored_tokens": 2}
    assert found["tokenizer"] == {"sha256": "ab" * 32, "vocab_size": 256}
    assert "do not estimate KL" in found["note"]


def test_a_prompt_is_context_and_a_part_of_a_character_is_marked(client, scorer):
    scorer.answer = replying(1.0)
    found = post(client, {"input": {"prompt": "é", "completion": "x日"}, "quantities": ["kl"]})
    (score,) = found["data"]
    assert score["tokens"]["text"] == ["�", "�", "x", "�", "�", "�"]
    assert score["tokens"]["kl"] == [None, None, 1.0, 1.0, 1.0, 1.0]
    assert set(score["tokens"]) == {"ids", "text", "start", "end", "scored", "kl"}
    assert scorer.requests[0].items == [ScoreItem(prompt="é", text="x日")]


def test_adjusted_reward_needs_no_k1_in_the_answer(client, scorer):
    scorer.answer = replying(0.25, -0.5)
    body = {
        "input": ["abc", "ab"],
        "reward": [2.0, 1.0],
        "beta": 0.1,
        "quantities": ["kl"],
        "per_token": False,
    }
    found = post(client, body)
    # 2 − .1·(2·.25) and 1 − .1·(1·−.5)
    assert [score["adjusted_reward"] for score in found["data"]] == [pytest.approx(1.95), pytest.approx(1.05)]
    assert [score["tokens"] for score in found["data"]] == [None, None]
    assert list(found["data"][0]["sums"]) == ["kl"]


def test_several_texts_have_means_with_clustered_errors(client, scorer):
    scorer.answer = replying(1.0, 3.0)
    found = post(client, {"input": ["abc", "ab"], "sampled_from": "policy"})
    # Σ k1 is 2 and 3 over 2 and 1 tokens: mean 2.5, sd/√2 = .5; R = 5/3,
    # SE² = 2/1 · ((2 − 2R)² + (3 − R)²) / 3² = 2·(16/9 + 16/9)/9
    assert found["summary"]["sums"]["k1"] == interval(2.5, 0.5)
    assert found["summary"]["means"]["k1"] == interval(5 / 3, math.sqrt(64) / 9)
    assert found["summary"]["n_clusters"] == 2
    assert "estimate KL(policy ‖ reference)" in found["note"]


def test_completions_of_one_prompt_are_one_cluster(client, scorer):
    scorer.answer = replying(1.0, 1.0, 3.0)
    same = {"prompt": "p", "completion": "a"}
    found = post(client, {"input": [same, same, {"prompt": "q", "completion": "a"}]})
    # clusters Σ = 2 of 2 texts and 3 of 1: R = 5/3, SE as above
    assert found["summary"]["n_clusters"] == 2
    assert found["summary"]["sums"]["k1"] == interval(5 / 3, math.sqrt(64) / 9)
    scorer.answer = replying(1.0, 2.0)
    one = post(client, {"input": [same, same]})
    assert one["summary"]["sums"]["k1"] == {"mean": 1.5} | UNKNOWN


def test_a_text_that_fails_leaves_the_others(client, scorer):
    scorer.answer = replying(1.0, 0.0, 1.0)
    found = post(client, {"input": ["ab", "", "abc"]})
    assert found["partial"] is True
    assert found["data"][1]["error"] == {"code": "empty_input", "detail": "no token is left to score"}
    assert [score["index"] for score in found["data"]] == [0, 1, 2]
    assert found["summary"]["n_items"] == 2
    assert found["usage"]["input_tokens"] == 5


def test_a_request_whose_every_text_fails_is_refused(client, scorer):
    scorer.answer = replying(0.0)
    assert post(client, {"input": ""}, 422)["code"] == "empty_input"


def test_infinities_are_null(client, scorer):
    scorer.answer = replying(math.inf, -math.inf)
    found = post(client, {"input": ["ab", "abc"], "reward": [1.0, 1.0], "beta": 0.5})
    assert found["data"][0]["tokens"]["k1"] == [None, None]
    assert found["data"][0]["sums"]["k1"] is None
    assert found["data"][0]["adjusted_reward"] is None
    assert found["summary"]["sums"]["k1"] == {"mean": None} | UNKNOWN


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ScorerUnavailable("x"), 503, "scorer_unavailable"),
        (ScorerOverloaded(7), 503, "overloaded"),
        (DeadlineExceeded("x"), 504, "deadline_exceeded"),
        (ScoringRefused("tokenizer_mismatch", "x"), 422, "tokenizer_mismatch"),
        (ScoringRefused("input_too_long", "x"), 413, "input_too_long"),
        (ScoringRefused("model_load_failed", "x"), 422, "model_load_failed"),
    ],
)
def test_the_scorer_s_refusals_are_problems(client, scorer, error, status, code):
    def raising(request):
        raise error

    scorer.answer = raising
    response = client.post("/v1/scores", json={"input": "abc"})
    assert (response.status_code, response.json()["code"]) == (status, code)
    if isinstance(error, ScorerOverloaded):
        assert response.headers["Retry-After"] == "7"


def test_too_many_items(client, scorer, settings):
    body = {"input": ["ab"] * (settings.max_items + 1)}
    assert post(client, body, 413)["code"] == "too_many_items"
    assert scorer.requests == []


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("policy", "nothing", "unknown_model"),
        ("policy", "job_" + "0" * 32 + "@final", "unknown_model"),
        ("reference", "/etc", "path_not_allowed"),
        ("policy", "../../etc", "path_not_allowed"),
        ("input", [], "validation_error"),
        ("input", None, "validation_error"),
        ("input", 5, "validation_error"),
        ("input", [["ab"]], "validation_error"),
        ("input", {"prompt": "a"}, "validation_error"),
        ("input", {"prompt": "a", "completion": "b", "role": "user"}, "validation_error"),
        ("quantities", ["k4"], "validation_error"),
        ("quantities", [], "validation_error"),
        ("temperature", 0, "validation_error"),
        ("temperature", "1", "validation_error"),
        ("temperature", True, "validation_error"),
        ("sampled_from", "base", "validation_error"),
        ("reward", 1.0, "validation_error"),  # without beta
        ("beta", 0.1, "validation_error"),  # without reward
        ("per_token", 1, "validation_error"),
        ("top_k", 21, "validation_error"),
        ("top_k", -1, "validation_error"),
        ("numerics", "exact", "validation_error"),
        ("truncation", True, "validation_error"),
        ("offsets", "char", "validation_error"),
        ("encoding_format", "hex", "validation_error"),
        ("add_special_tokens", 1, "validation_error"),
        ("request_timeout_s", 0, "validation_error"),
        ("attribution", 1, "validation_error"),
    ],
)
def test_bad_fields(client, scorer, field, value, code):
    scorer.answer = replying(1.0)
    assert post(client, {"input": "abc", field: value}, 422)["code"] == code
    assert scorer.requests == []


def test_rewards_are_one_per_item(client):
    problem = post(client, {"input": ["ab", "cd"], "reward": 1.0, "beta": 0.1}, 422)
    assert "reward has 1 numbers and input has 2 items" in json.dumps(problem)


# -- the real scorer ------------------------------------------------------------------------------


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
        scorer.close()
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
        assert all(0 < sum(answer["top"]["kl_term"][t]) <= answer["tokens"]["kl"][t] * 1.001 for t in scored)
        for wrong, code in (([5, 400], "token_id_out_of_range"), ([5], "empty_input")):
            assert post(client, {"input": wrong}, 422)["code"] == code

        same = post(client, {"policy": "base", "reference": str(tiny.base), "input": "the cat"})
        assert same["data"][0]["sums"]["kl"] == 0.0
        assert (
            post(client, {"reference": str(tiny.foreign), "input": "ab cd"}, 422)["code"]
            == "tokenizer_mismatch"
        )
        assert post(client, {"input": "x" * 400}, 413)["code"] == "input_too_long"
        assert post(client, {"input": ["ab cd", "x" * 400]})["partial"] is True


def test_requests_that_wait_for_scores_leave_threads_to_the_other_routes(client, scorer):
    """As many as the API lets wait, each in a thread, and a route that needs one too."""
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

    with Server(("127.0.0.1", 0), Handler) as server, ThreadPoolExecutor(MAX_WAITING) as pool:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        scorer = HttpScorer(f"http://127.0.0.1:{server.server_port}")
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
        scorer.close()
        server.shutdown()


LISTS = {
    "input": lambda wrong: {"input": wrong},
    "reward": lambda wrong: {"input": "a", "reward": wrong},
    "quantities": lambda wrong: {"input": "a", "quantities": wrong[:8]},
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_wrong_elements_costs_one_error(name):
    with pytest.raises(ValidationError) as refused:
        ScoresRequest.model_validate(LISTS[name]([None] * 4096))
    assert sum(name in error["loc"] for error in refused.value.errors()) <= (2 if name == "reward" else 1)


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_the_request_is_bounded(name):
    right = {"input": ["a"] * 4097, "reward": [1.0] * 4097, "quantities": ["kl"] * (len(QUANTITIES) + 1)}[
        name
    ]
    with pytest.raises(ValidationError) as refused:
        ScoresRequest.model_validate({"input": "a", "beta": 1.0, "reward": 1.0} | {name: right})
    assert "too_long" in {error["type"] for error in refused.value.errors()}


def test_a_scorer_that_is_not_there_is_unavailable(tmp_path):
    for url in (f"unix:{tmp_path}/nothing.sock", "http://127.0.0.1:9"):
        scorer = HttpScorer(url)
        request = ScoreRequest(
            policy=ModelSource(path="a"), reference=ModelSource(path="b"), items=[ScoreItem(text="c")]
        )
        assert scorer.ready() is False
        with pytest.raises(ScorerUnavailable):
            scorer.score(request, timeout_s=1.0)
        scorer.close()
