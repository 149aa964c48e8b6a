"""The forms that an item of /v1/scores may have, and the forms that its answer may take."""

import base64
import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.json_response import json_response
from api.schemas_inputs import TokenIds, context_of, items_of
from api.schemas_scores import ScoreList, ScoresRequest
from api.services.token_columns import in_unit, token_columns, top_columns
from api.strict_json import parse
from jobs.scoring_wire import (
    ChatMessage,
    ItemError,
    ItemScores,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    TopTerms,
    decode_reply,
    encode_reply,
)

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def answer(request: ScoreRequest) -> ScoreReply:
    """Every token is a byte; token t's quantities are t/8; the top k of token t are the ids t, t+1, …"""
    items = []
    for item in request.items:
        if item.token_ids is not None:
            raw, first, text = bytes(item.token_ids), item.score_from, bytes(item.token_ids)
        elif item.messages is not None:
            raw = text = "|".join(message.content for message in item.messages).encode()
            first = len(raw) - len(item.messages[-1].content)
        else:
            raw, first, text = ((item.prompt or "") + item.text).encode(), 1, None
        n = len(raw)
        scored = np.arange(n) >= first
        values = np.where(scored, np.arange(n) / 8, np.nan).astype(np.float32)
        terms = np.repeat(values[:, None], request.top_k, axis=1)
        ids = np.arange(n, dtype=np.int32)[:, None] + np.arange(request.top_k, dtype=np.int32)
        items.append(
            ItemScores(
                token_ids=np.frombuffer(raw, np.uint8).astype(np.int32),
                start=np.arange(n, dtype=np.int32),
                end=np.arange(1, n + 1, dtype=np.int32),
                scored=scored,
                quantities=dict.fromkeys(request.quantities, values),
                top=TopTerms(ids=ids, policy_logprob=terms, reference_logprob=-terms, kl_term=terms)
                if request.top_k
                else None,
                text=text,
                truncated=item.truncation == "left",
            )
        )
    reply = ScoreReply(
        items=items,
        tokenizer_sha256="ab" * 32,
        vocab_size=256,
        weights_dtype="float32",
        pieces={n: f"<{n}>" for n in range(300)} if request.top_k else {},
    )
    return decode_reply(encode_reply(reply))


@pytest.fixture(autouse=True)
def _answering(scorer):
    scorer.answer = answer


def post(client, status=200, **body):
    response = client.post("/v1/scores", json=body)
    assert response.status_code == status, response.text
    if status == 200:
        ScoreList.model_validate_json(response.content, strict=True)
    return response.json()


# -- what may be sent -----------------------------------------------------------------------------


def test_each_form_becomes_one_item_of_the_wire(client, scorer):
    items = [
        "ab",
        {"prompt": "p", "completion": "c"},
        [97, 98],
        {"token_ids": [97, 98, 99], "score_from": 2},
        CHAT,
    ]
    found = post(client, input=items)
    assert scorer.requests[0].items == [
        ScoreItem(text="ab"),
        ScoreItem(prompt="p", text="c"),
        ScoreItem(token_ids=[97, 98]),
        ScoreItem(token_ids=[97, 98, 99], score_from=2),
        ScoreItem(
            messages=[ChatMessage(role="user", content="hi"), ChatMessage(role="assistant", content="hello")]
        ),
    ]
    assert [score["n_tokens"] for score in found["data"]] == [2, 2, 2, 3, 8]
    assert found["data"][3]["tokens"]["text"] == ["a", "b", "c"]  # which the request does not hold
    assert found["data"][4]["tokens"]["text"] == list("hi|hello")
    assert found["data"][4]["n_scored"] == 5


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([[]], [[]]),
        ({"token_ids": []}, [[]]),
        ({"token_ids": [5, 6]}, [[5, 6]]),
        ([-1, 2**62], [[-1, 2**62]]),  # the scorer knows the vocabulary
    ],
)
def test_lists_of_integers_are_read_as_embeddings_apis_read_them(sent, expected):
    request = ScoresRequest.model_validate({"input": sent})
    assert [item.token_ids for item in request.items] == expected
    assert all(isinstance(item, TokenIds) for item in request.items)


@pytest.mark.parametrize(
    ("sent", "pointer"),
    [
        ([1, 2, "a"], "/input/2"),
        ([1, True], "/input/1"),
        ([1, 2.0], "/input/1"),
        ([True], "/input/0"),
        (["a", [1, None]], "/input/1/1"),
        ({"token_ids": "abc"}, "/input/token_ids"),
        ({"token_ids": [1], "score_from": 0}, "/input/score_from"),
        ([{"token_ids": [1, 2], "text": "a"}], "/input/0/text"),
        ({"messages": []}, "/input/messages"),
        (["a", {"messages": [{"role": "user", "content": "hi"}]}], "/input/1/messages"),
        ({"messages": [{"role": "assistant"}]}, "/input/messages/0/content"),
        ({"messages": [{"role": "a<|end|>", "content": ""}]}, "/input/messages/0/role"),
        ({"messages": [{"role": "assistant", "content": ["hi"]}]}, "/input/messages/0/content"),
        ({"messages": [{"role": "assistant", "content": "x"}], "score_from": 1}, "/input/score_from"),
    ],
)
def test_what_is_no_item_is_refused_by_its_pointer(client, scorer, sent, pointer):
    problem = post(client, 422, input=sent)
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert len(json.dumps(problem)) < 2048
    assert scorer.requests == []


def test_the_last_message_must_be_the_assistant_s(client):
    problem = post(client, 422, input={"messages": CHAT["messages"][::-1]})
    assert "last message must be the assistant's" in problem["detail"]


def test_a_megabyte_of_token_ids_is_read_fast_and_one_error_is_enough():
    body = json.dumps({"input": [7] * 330_000}).encode()
    assert 900_000 < len(body) < 1_000_000
    started = time.thread_time()
    request = ScoresRequest.model_validate(parse(body))
    assert len(request.items[0].token_ids) == 330_000
    assert time.thread_time() - started < 1.0  # 0.1 s; others on this core do not count


@pytest.mark.parametrize(
    "wrong", ["[null" + ",null" * 190_000 + "]", '["' + '","'.join("a" * 240_000) + '"]']
)
def test_a_megabyte_of_wrong_elements_is_refused_fast_and_briefly(client, wrong):
    started = time.process_time()
    body = f'{{"input": {{"token_ids": {wrong}}}}}'
    response = client.post("/v1/scores", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert len(response.content) < 2048
    assert time.process_time() - started < 5


def test_items_with_a_common_context_are_not_independent(client):
    other = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hey"}]}
    ids = [{"token_ids": [1, 2, n], "score_from": 2} for n in (3, 4)]
    assert post(client, input=[CHAT, other])["summary"]["n_clusters"] == 1
    assert post(client, input=ids)["summary"]["n_clusters"] == 1
    assert post(client, input=[[1, 2, 3], [1, 2, 4]])["summary"]["n_clusters"] == 2
    (bare,) = items_of([1, 2, 3])
    assert context_of(bare) is None


@pytest.mark.parametrize(
    "code", ["token_id_out_of_range", "no_chat_template", "chat_template_failed", "chat_template_mismatch"]
)
def test_a_request_whose_only_item_cannot_be_scored_has_that_item_s_problem(client, scorer, code):
    error = ItemError(code=code, detail="why")
    scorer.answer = lambda request: replace(answer(request), items=[error] * len(request.items))
    problem = post(client, 422, input=CHAT)
    assert (problem["code"], problem["detail"]) == (code, "why")
    assert problem["title"] != "Unprocessable Content"


# -- how it is scored -----------------------------------------------------------------------------


def test_options_reach_the_scorer_and_the_answer_says_so(client, scorer):
    found = post(client, input="abc", numerics="strict", truncation="left", add_special_tokens=False)
    (request,) = scorer.requests
    assert request.numerics == "strict"
    assert request.items == [ScoreItem(text="abc", truncation="left", add_special_tokens=False)]
    assert (found["numerics"]["mode"], found["numerics"]["batch_invariant"]) == ("strict", True)
    assert found["data"][0]["truncated"] is True
    plain = post(client, input="abc")
    assert (plain["numerics"]["mode"], plain["numerics"]["batch_invariant"]) == ("fast", False)
    assert (plain["data"][0]["truncated"], plain["data"][0]["top"], plain["encoding"]) == (False, None, None)


def test_a_client_may_shorten_its_deadline_and_not_lengthen_the_deployment_s(client, scorer, settings):
    asked = []

    async def score(request, *, timeout_s):
        asked.append(timeout_s)
        return answer(request)

    scorer.score = score
    for timeout_s in (0.5, 3600, None):
        post(client, input="abc", request_timeout_s=timeout_s)
    assert asked == [0.5, settings.score_timeout_s, settings.score_timeout_s]


# -- what the answer looks like -------------------------------------------------------------------


def test_the_top_of_each_scored_token(client):
    (score,) = post(client, input="abc", top_k=2, per_token=False)["data"]
    assert score["tokens"] is None
    assert score["top"] == {
        "k": 2,
        "ids": [None, [1, 2], [2, 3]],
        "text": [None, ["<1>", "<2>"], ["<2>", "<3>"]],
        "policy_logprob": [None, [0.125, 0.125], [0.25, 0.25]],
        "reference_logprob": [None, [-0.125, -0.125], [-0.25, -0.25]],
        "kl_term": [None, [0.125, 0.125], [0.25, 0.25]],
        "kl_rest": [None, 0.0, 0.0],  # these terms are more than the kl of t/8
    }


def test_only_as_many_top_terms_as_asked_for_are_shown():
    """The scorer may send more, for the attribution."""
    ids = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    terms = ids.astype(np.float32)
    top = TopTerms(ids=ids, policy_logprob=terms, reference_logprob=terms, kl_term=terms)
    scored, pieces = np.array([False, True]), {4: "a", 5: "b", 6: "c"}
    kl = np.array([np.nan, 30.0], np.float32)
    shown = json.loads(json_response(top_columns(top, kl, scored, pieces, k=2, encoding="float")).body)
    assert (shown["k"], shown["ids"], shown["text"]) == (2, [None, [4, 5]], [None, ["a", "b"]])
    assert shown["kl_term"] == [None, [4.0, 5.0]]
    assert shown["kl_rest"] == [None, 21.0]  # 30 − 4 − 5: the third, which is not shown, is among the rest
    packed = top_columns(top, kl, scored, pieces, k=2, encoding="base64")
    assert np.frombuffer(base64.b64decode(packed["ids"]), "<i4").tolist() == [-1, -1, 4, 5]


def test_base64_holds_the_same_numbers(client):
    options = {"input": "ab日", "quantities": ["kl", "k1"], "top_k": 3}
    (plain,) = post(client, **options)["data"]
    found = post(client, **options, encoding_format="base64")
    assert found["encoding"] == {"quantities": "float32", "integers": "int32", "byte_order": "little"}
    (packed,) = found["data"]

    def numbers(text, dtype, *shape):
        values = np.frombuffer(base64.b64decode(text), dtype)
        values = values.reshape(shape) if shape else values
        return [None if np.isnan(value).any() else value.tolist() for value in values]

    for name in ("ids", "start", "end"):
        assert numbers(packed["tokens"][name], "<i4") == plain["tokens"][name]
    for name in ("kl", "k1"):
        assert numbers(packed["tokens"][name], "<f4") == plain["tokens"][name]
    for name in ("policy_logprob", "reference_logprob", "kl_term"):
        assert numbers(packed["top"][name], "<f4", 5, 3) == plain["top"][name]
    assert numbers(packed["top"]["kl_rest"], "<f4") == plain["top"]["kl_rest"]
    assert numbers(packed["top"]["ids"], "<i4", 5, 3) == [[-1] * 3, *plain["top"]["ids"][1:]]
    for name in ("text", "scored"):
        assert packed["tokens"][name] == plain["tokens"][name]
    assert packed["sums"] == plain["sums"]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=40))
def test_json_and_base64_hold_the_same_bits(values):
    """JSON writes the shortest decimal that reads as this float32."""
    column = np.array([np.nan, *values], np.float32)
    n = len(column)
    answered = ItemScores(
        token_ids=np.arange(n, dtype=np.int32),
        start=np.arange(n, dtype=np.int32),
        end=np.arange(1, n + 1, dtype=np.int32),
        scored=np.arange(n) > 0,
        quantities={"kl": column},
    )

    def columns(encoding):
        how = {"offsets": "none", "encoding": encoding}
        return json.loads(json_response(token_columns("x" * n, answered, ["kl"], **how)).body)["kl"]

    plain, packed = columns("float"), np.frombuffer(base64.b64decode(columns("base64")), "<f4")
    assert plain[0] is None
    assert np.isnan(packed[0])
    assert np.array(plain[1:], np.float32).tobytes() == packed[1:].tobytes() == column[1:].tobytes()


def test_offsets_may_be_left_out_or_be_in_another_unit(client):
    def spans(unit):
        tokens = post(client, input="a😀b", offsets=unit)["data"][0]["tokens"]
        return tokens.get("start"), tokens.get("end")

    assert spans("none") == (None, None)
    assert spans("byte") == ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    assert spans("codepoint") == ([0, 1, 1, 1, 1, 2], [1, 2, 2, 2, 2, 3])
    assert spans("utf16") == ([0, 1, 1, 1, 1, 3], [1, 3, 3, 3, 3, 4])


def cut(raw, places):
    """Spans that tile `raw`, cut at the given places."""
    ends = [*sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return np.array([0, *ends[:-1]], np.int32), np.array(ends, np.int32)


@given(st.text(max_size=30), st.lists(st.integers(0, 200), max_size=8))
@example("👩‍👩‍👧‍👦e\u0301日本\U00020000", [1, 5, 9, 26, 30])
def test_units_name_the_smallest_slice_that_holds_the_bytes(text, places):
    raw = text.encode()
    start, end = cut(raw, places)
    for unit in ("codepoint", "utf16"):
        first, last = in_unit(raw, start, end, unit)
        for a, b, i, j in zip(start, end, first, last, strict=True):
            if unit == "codepoint":
                before, within = text[:i], text[i:j]
            else:
                utf16 = text.encode("utf-16-le")
                before, within = (utf16[2 * m : 2 * n].decode("utf-16-le") for m, n in ((0, i), (i, j)))
            lead = len(before.encode())
            assert lead <= a  # the slice begins at or before the token's bytes …
            if a == b:
                assert within == ""
                continue
            assert lead + len(within.encode()) >= b  # … ends at or after them …
            assert lead + len(within[0].encode()) > a  # … and could be no shorter
            assert lead + len(within[:-1].encode()) < b


@given(st.binary(max_size=20), st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_have_offsets_that_do_not_go_back(raw, places):
    start, end = cut(raw, places)
    for unit in ("codepoint", "utf16"):
        first, last = in_unit(raw, start, end, unit)
        assert (np.diff(first) >= 0).all()
        assert (first <= last).all()
        text = raw.decode("utf-8", "surrogateescape")
        assert last[-1] == len(text) if unit == "codepoint" else last[-1] >= len(text)
