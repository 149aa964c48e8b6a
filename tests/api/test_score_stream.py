"""POST /v1/scores/stream: every item once, as soon as it is known; the last line says whether that was all."""

import threading

import pytest

from api.schemas_score_stream import StreamLine
from api.services.score_stream import GROUP, IN_FLIGHT
from jobs.errors import DeadlineExceeded, ScorerOverloaded, ScorerUnavailable, ScoringRefused
from jobs.scoring_wire import ScoreReply, ScoreRequest
from tests.api.byte_scorer import byte_answer, post, stream

PATIENCE_S = 60.0
TEXTS = [f"text {index} {'é' * (index % 7)}" for index in range(6 * GROUP + 5)]


@pytest.fixture
def bytewise(scorer) -> None:
    scorer.answer = byte_answer


@pytest.mark.usefixtures("bytewise")
def test_a_stream_is_the_answer_in_lines(client, scorer):
    """The same documents as from /v1/scores, which has room for them, and the same rest."""
    body = {"input": TEXTS, "sampled_from": "policy", "quantities": ["kl", "k1"], "top_k": 0}
    whole = post(client, body)
    scorer.requests.clear()
    *lines, last = found = stream(client, body)
    for line in found:
        StreamLine.model_validate(line, strict=True)  # what OpenAPI promises
    assert sorted(line["index"] for line in lines) == list(range(len(TEXTS)))
    assert sorted(lines, key=lambda line: line["index"]) == whole["data"]
    assert (last["object"], last["complete"], last["error"]) == ("score.summary", True, None)
    assert (last["items"], last["failed"], last["missing"]) == (len(TEXTS), 0, 0)
    for part in ("policy", "reference", "tokenizer", "numerics", "encoding", "summary", "note", "usage"):
        assert last[part] == whole[part], part
    assert sorted(len(request.items) for request in scorer.requests) == [5, *[GROUP] * 6]


@pytest.mark.usefixtures("bytewise")
def test_more_than_one_answer_may_hold_is_streamed(client, settings):
    texts = ["ab"] * (settings.max_items + 1)
    refused = client.post("/v1/scores", json={"input": texts})
    assert (refused.status_code, refused.json()["code"]) == (413, "too_many_items")
    assert refused.json()["context"] == {"limit": settings.max_items, "actual": len(texts)}
    assert str(settings.max_items) in refused.json()["detail"]
    assert "/v1/scores/stream" in refused.json()["detail"]
    assert "respond-async" in refused.json()["detail"]
    assert stream(client, {"input": texts, "per_token": False})[-1]["usage"]["scored_tokens"] == len(texts)


@pytest.mark.usefixtures("bytewise")
def test_an_item_that_fails_is_a_line(client):
    *lines, last = stream(client, {"input": ["ab", "", "cd"]})
    codes = {line["index"]: line.get("error", {}).get("code") for line in lines}
    assert codes == {0: None, 1: "empty_input", 2: None}
    assert (last["complete"], last["failed"], last["missing"]) == (True, 1, 0)
    assert last["usage"] == {"input_tokens": 4, "scored_tokens": 2}


@pytest.mark.parametrize("field", ["attribution"])
def test_what_is_of_all_items_together_is_refused_by_name(client, scorer, field):
    refused = client.post("/v1/scores/stream", json={"input": ["ab", "cd"], field: True})
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_option")
    assert refused.json()["errors"][0]["pointer"] == f"/{field}"
    assert scorer.requests == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ScorerUnavailable("away"), 503, "scorer_unavailable"),
        (ScorerOverloaded(3), 503, "overloaded"),
        (DeadlineExceeded("late", {"queue": 1.5, "compute": 0.25}), 504, "deadline_exceeded"),
        (ScoringRefused("tokenizer_mismatch", "x"), 422, "tokenizer_mismatch"),
    ],
)
def test_before_the_first_line_a_failure_is_a_problem(client, scorer, error, status, code):
    def fail(request: ScoreRequest) -> ScoreReply:
        raise error

    scorer.answer = fail
    response = client.post("/v1/scores/stream", json={"input": TEXTS})
    assert (response.status_code, response.json()["code"]) == (status, code)
    if status == 504:
        assert response.json()["context"] == {"queue_s": 1.5, "compute_s": 0.25}


@pytest.mark.parametrize(
    ("error", "code"),
    [(ScorerUnavailable("x"), "scorer_unavailable"), (DeadlineExceeded("x"), "deadline_exceeded")],
)
def test_a_scorer_that_goes_away_is_told_in_the_last_line(client, scorer, error, code):
    lock = threading.Lock()

    def answer(request: ScoreRequest) -> ScoreReply:
        with lock:
            if len(scorer.requests) > IN_FLIGHT + 1:
                raise error
        return byte_answer(request)

    scorer.answer = answer
    *lines, last = stream(client, {"input": TEXTS})
    assert (last["object"], last["complete"], last["error"]["code"]) == ("score.summary", False, code)
    assert last["items"] - last["missing"] == len(lines) < len(TEXTS)
    assert last["usage"]["input_tokens"] == sum(line["n_tokens"] for line in lines)


def test_a_scorer_that_is_full_in_between_is_asked_again(client, scorer):
    refusals = iter([True, True])

    def answer(request: ScoreRequest) -> ScoreReply:
        if request.items[0].text != TEXTS[0] and next(refusals, False):
            raise ScorerOverloaded(0)
        return byte_answer(request)

    scorer.answer = answer
    *lines, last = stream(client, {"input": TEXTS})
    assert last["complete"] is True
    assert len(lines) == len(TEXTS)


def test_a_group_that_is_too_long_goes_in_halves_and_only_the_item_that_is_fails(client, scorer):
    def answer(request: ScoreRequest) -> ScoreReply:
        if sum(len(item.text) for item in request.items) > 40:
            raise ScoringRefused("input_too_long", "more than 40", {"limit": 40})
        return byte_answer(request)

    scorer.answer = answer
    texts = ["a" * 15, "b" * 15, "c" * 50, *["d" * 15] * 3]
    *lines, last = stream(client, {"input": texts})
    failed = {line["index"] for line in lines if "error" in line}
    assert ({line["index"] for line in lines}, failed) == (set(range(6)), {2})
    assert (last["complete"], last["failed"]) == (True, 1)


def test_few_groups_are_at_the_scorer_at_once(client, scorer):
    lock, now, most = threading.Lock(), [0], [0]
    together = threading.Barrier(IN_FLIGHT)

    def answer(request: ScoreRequest) -> ScoreReply:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        together.wait(PATIENCE_S)
        with lock:
            now[0] -= 1
        return byte_answer(request)

    scorer.answer = answer
    assert stream(client, {"input": ["ab"] * (GROUP * IN_FLIGHT * 2)})[-1]["complete"] is True
    assert most[0] == IN_FLIGHT
