"""POST /v1/scores: the document from a scorer's arrays, and its refusals."""

import json
import math
from dataclasses import replace

import pytest
from pydantic import ValidationError

from api.schemas_scores import ScoresRequest
from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import QUANTITIES, ItemError, ModelSource, ScoreItem, decode_reply, encode_reply
from jobs.spec import MAX_METADATA
from tests.api.byte_scorer import post, replying, stream

T_1 = 12.7062047361746933  # the 97.5 % quantile of Student's t with 1 degree of freedom, for two clusters
UNKNOWN = {"se": None, "low": None, "high": None}


def interval(mean, se):
    """The estimate of two clusters."""
    values = {"mean": mean, "se": se, "low": mean - T_1 * se, "high": mean + T_1 * se}
    return {name: pytest.approx(value) for name, value in values.items()}


def test_one_text_with_the_default_pair(client, scorer):
    scorer.answer = replying(0.5)
    found = post(client, {"input": "abc"})
    (request,) = scorer.requests
    assert request.reference == ModelSource(path="org/base")
    assert request.policy.base == "org/base"
    assert (found["policy"], found["reference"]) == (
        {"id": "tuned", "revision": None, "weights_sha256": None},
        {"id": "base", "revision": None, "weights_sha256": None},
    )
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
    sizes = {"vocab_size": 256, "policy_vocab_size": 256, "reference_vocab_size": 256}
    assert found["tokenizer"] == {"sha256": "ab" * 32, "shared": True} | sizes
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
    detail = "no token is left to score"
    assert found["data"][1]["error"] == {"code": "empty_input", "detail": detail, "context": {}}
    assert [score["index"] for score in found["data"]] == [0, 1, 2]
    assert found["summary"]["n_items"] == 2
    assert found["usage"]["input_tokens"] == 5


def test_a_request_whose_every_text_fails_is_refused(client, scorer):
    scorer.answer = replying(0.0)
    assert post(client, {"input": ""}, 422)["code"] == "empty_input"


def test_an_item_of_which_no_token_was_scored_fails_alone(client, scorer):
    """A scorer says so itself; one that does not must not make a mean of nothing."""

    def answer(request):
        reply = replying(*[0.5] * len(request.items))(request)
        first = reply.items[0]
        return replace(reply, items=[replace(first, scored=first.scored & False), *reply.items[1:]])

    scorer.answer = answer
    found = post(client, {"input": ["ab", "abc"], "attribution": True, "top_k": 1})
    assert found["data"][0]["error"]["code"] == "empty_input"
    assert found["data"][1]["means"]["k1"] == 0.5
    assert (found["partial"], found["usage"]) == (True, {"input_tokens": 3, "scored_tokens": 2})
    assert post(client, {"input": "ab"}, 422)["code"] == "empty_input"
    line, summary = stream(client, {"input": "ab"})
    assert (line["error"]["code"], summary["failed"]) == ("empty_input", 1)


def test_an_item_keeps_the_numbers_of_its_error(client, scorer):
    error = ItemError(code="input_too_long", detail="5 > 4", context={"limit": 4, "actual": 5})

    def answer(request):
        reply = replying(*[0.5] * len(request.items))(request)
        return decode_reply(encode_reply(replace(reply, items=[error, *reply.items[1:]])))

    scorer.answer = answer
    expected = {"code": "input_too_long", "detail": "5 > 4", "context": {"limit": 4, "actual": 5}}
    assert post(client, {"input": ["abcde", "ab"]})["data"][0]["error"] == expected
    assert stream(client, {"input": ["abcde", "ab"]})[0]["error"] == expected
    assert post(client, {"input": "abcde"}, 413)["context"] == expected["context"]


def test_what_is_said_of_a_request_comes_back_with_its_answer(client, scorer):
    scorer.answer = replying(0.5)
    metadata = {"team": "rl", "run": "7"}
    assert post(client, {"input": "ab"})["metadata"] == {}
    assert post(client, {"input": "ab", "metadata": metadata})["metadata"] == metadata
    assert stream(client, {"input": "ab", "metadata": metadata})[-1]["metadata"] == metadata
    too_many = {"metadata": {str(n): "" for n in range(MAX_METADATA + 1)}}
    assert post(client, {"input": "ab"} | too_many, 422)["errors"][0]["pointer"] == "/metadata"


def test_infinities_are_null_and_said(client, scorer):
    scorer.answer = replying(0.5)
    assert post(client, {"input": "ab"})["data"][0]["warnings"] == []
    scorer.answer = replying(math.inf, -math.inf)
    found = post(client, {"input": ["ab", "abc"], "reward": [1.0, 1.0], "beta": 0.5})
    assert found["data"][0]["tokens"]["k1"] == [None, None]
    assert found["data"][0]["sums"]["k1"] is None
    assert [item["warnings"] for item in found["data"]] == [["non_finite_logits"]] * 2
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
