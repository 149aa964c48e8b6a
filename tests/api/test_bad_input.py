"""Whatever a client sends, it gets a 4xx with a code, in at most 2 KB, that repeats nothing of what it sent."""

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from api.problems import MAX_BYTES, MEDIA_TYPE, problem
from api.request_log import trace_id_of
from api.schemas import Problem
from jobs.sql_store import SqlStore

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "canary-7f3a"
JSON = {"Content-Type": "application/json"}
POSTS = ("/v1/jobs", "/v1/divergences", "/v1/scores")
Edit = Callable[[dict[str, Any]], Any]


def refused(response: Any, status: int, code: str) -> dict[str, Any]:
    """The problem, after checking what holds for every refusal."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    assert len(response.content) <= MAX_BYTES
    assert CANARY not in response.text
    problem: dict[str, Any] = response.json()
    Problem.model_validate(problem, strict=True, extra="forbid")
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["retryable"] is False
    return problem


NOT_JSON = {
    "nan": b'{"a": NaN, "b": "%s"}',
    "minus infinity": b'{"a": -Infinity, "b": "%s"}',
    "overflowing float": b'{"a": 1e999, "b": "%s"}',
    "lone surrogate in a value": b'{"a": "%s\\ud800"}',
    "lone surrogate in a list": b'{"a": ["%s", ["\\udc00x"]]}',
    "lone surrogate in a key": b'{"%s\\ud83d": 1}',
    "surrogates in the wrong order": b'{"a": "%s\\ude00\\ud83d"}',
    "duplicate key": b'{"%s": 1, "%s": 2}',
    "nested duplicate key": b'{"a": [{"%s": 1, "%s": 2}]}',
    "not utf-8": b'{"a": "%s\xff"}',
    "utf-16": '{"a": "canary-7f3a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "cut off": b'{"a": "%s',
    "trailing text": b"{} %s",
    "python literal": b"{'a': '%s'}",
    "only a word": b"%s",
    "deep": b'{"%s":' + b"[" * 100_000,
    "5,000 digits": b'{"a": ' + b"7" * 5000 + b', "b": "%s"}',
    "65-bit integer": b'{"a": 18446744073709551616, "b": "%s"}',
    "too many names": b'{"%s": 0' + b"".join(b',"k%d":0' % i for i in range(2000)) + b"}",
}


def test_what_is_not_strict_json_is_a_400(client: TestClient) -> None:
    for path, (name, body) in product(POSTS, NOT_JSON.items()):
        response = client.post(path, content=body.replace(b"%s", CANARY.encode()), headers=JSON)
        assert refused(response, 400, "malformed_json")["detail"], name


def test_a_real_surrogate_pair_is_text(client: TestClient, spec: dict[str, Any]) -> None:
    body = json.dumps(spec | {"name": "😀"})  # escaped as \ud83d\ude00
    assert "\\ud83d" in body
    response = client.post("/v1/jobs", content=body, headers=JSON)
    assert (response.status_code, response.json()["name"]) == (201, "😀")


def with_config(**parts: Any) -> Edit:
    return lambda spec: spec | {"config": spec["config"] | parts}


SECRET = {CANARY: CANARY}
MISFITS: dict[str, tuple[Edit, str, str]] = {
    "an array": (lambda spec: [CANARY], "", "model_attributes_type"),
    "a string": (lambda spec: CANARY, "", "model_attributes_type"),
    "null": (lambda spec: None, "", "missing"),
    "no config": (lambda spec: SECRET, "/config", "missing"),
    "unknown field": (lambda spec: spec | SECRET, "", "extra_forbidden"),
    "unknown type": (lambda spec: spec | {"type": CANARY}, "", "job_type"),
    "metadata value": (lambda spec: spec | {"metadata": {CANARY: 1}}, "/metadata", "string_type"),
    "metadata key": (lambda spec: spec | {"metadata": {CANARY * 9: "x"}}, "/metadata", "string_too_long"),
    "steps as text": (with_config(optimization={"steps": CANARY}), "/config/optimization/steps", "int_type"),
    "steps false": (with_config(optimization={"steps": False}), "/config/optimization/steps", "int_type"),
    "no steps": (with_config(optimization={"steps": 0}), "/config/optimization/steps", "greater_than_equal"),
    "unknown reward": (with_config(reward={"kind": CANARY}), "/config/reward", "union_tag_invalid"),
    "bad pattern type": (
        with_config(reward={"kind": "regex", "pattern": SECRET}),
        "/config/reward/pattern",
        "string_type",
    ),
    "empty prompt": (with_config(data={"prompts": ["a", ""]}), "/config/data/prompts/1", "string_too_short"),
    "two sources": (
        with_config(data={"prompts": [CANARY], "prompts_file": CANARY}),
        "/config/data",
        "value_error",
    ),
    "batch does not divide": (with_config(rollout={"batch_size": 7}), "/config", "value_error"),
    "no pattern": (
        with_config(reward={"kind": "regex", "pattern": f"({CANARY}"}),
        "/config/reward/pattern",
        "value_error",
    ),
    "too many repetitions": (
        with_config(reward={"kind": "regex", "pattern": f"{CANARY}{{9999999999}}"}),
        "/config/reward/pattern",
        "value_error",
    ),
    "a deep pattern": (
        with_config(reward={"kind": "regex", "pattern": "(" * 500 + ")" * 500}),
        "/config/reward/pattern",
        "value_error",
    ),
    "a long name": (
        with_config(model={"name": "a/" * 3000}),
        "/config/model/name",
        "string_too_long",
    ),
    "a long file name": (
        with_config(data={"prompts_file": "a/" * 3000}),
        "/config/data/prompts_file",
        "string_too_long",
    ),
    "a long checkpoint": (
        lambda spec: spec | {"resume_from": "a" * 5000},
        "/resume_from",
        "string_too_long",
    ),
}


def test_a_misfit_is_a_422_that_points_at_the_place(
    client: TestClient, store: SqlStore, spec: dict[str, Any]
) -> None:
    for name, (edit, pointer, code) in MISFITS.items():
        problem = refused(client.post("/v1/jobs", json=edit(spec)), 422, "validation_error")
        first = problem["errors"][0]
        assert (first["pointer"], first["code"]) == (pointer, code), name
    assert store.list_jobs() == []


def test_a_misspelt_field_gets_a_suggestion(client: TestClient, spec: dict[str, Any]) -> None:
    spec["config"]["optimization"]["lerning_rate"] = 1e-4
    (error,) = refused(client.post("/v1/jobs", json=spec), 422, "validation_error")["errors"]
    assert error["detail"] == "unknown field; did you mean learning_rate?"
    assert error["pointer"] == "/config/optimization"  # a name that only the client knows is not repeated


def test_a_thousand_mistakes_fit_into_two_kilobytes(client: TestClient, spec: dict[str, Any]) -> None:
    spec["config"]["optimization"] = {f"{CANARY}{i}": i for i in range(900)}
    problem = refused(client.post("/v1/jobs", json=spec), 422, "validation_error")
    assert 5 <= len(problem["errors"]) <= 20


def test_no_detail_is_too_long_for_two_kilobytes() -> None:
    scope = {"type": "http", "path": "/"}
    for text in ("é", "😀", "\x00", '"', "\ud800"):  # of 2, 4, 6, 2 and 1 bytes as JSON
        errors = [{"pointer": "/a", "code": "c", "detail": text * 300}] * 20
        response = problem(scope, 422, "c", text * 5000, errors=errors)
        assert len(response.body) <= MAX_BYTES
        assert len(json.loads(response.body)["detail"]) == 300, text
    crowded = problem(scope, 422, "c", "\x00" * 300, context={"actual": "9" * 400})
    assert len(crowded.body) <= MAX_BYTES
    assert json.loads(crowded.body)["detail"] == "\x00" * 150


UNUSABLE_MODELS = (
    (CANARY, "unknown_model"),
    (f"org/{CANARY}", "unknown_model"),
    (f"job_{'0' * 32}@final", "unknown_model"),
    ("/etc", "path_not_allowed"),
    (f"../{CANARY}", "path_not_allowed"),
    ("a\0/b", "path_not_allowed"),
    ("tuned", "adapter_not_trainable"),
)


def test_a_model_that_cannot_be_used(client: TestClient, spec: dict[str, Any]) -> None:
    for name, code in UNUSABLE_MODELS:
        refused(client.post("/v1/jobs", json=with_config(model={"name": name})(spec)), 422, code)


def test_a_prompts_file_that_cannot_be_read(client: TestClient, spec: dict[str, Any]) -> None:
    for name, code in (("/etc/passwd", "path_not_allowed"), (f"{CANARY}.jsonl", "file_not_found")):
        for data in ({"prompts_file": name}, {"prompts": ["a"], "eval_prompts_file": name}):
            refused(client.post("/v1/jobs", json=with_config(data=data)(spec)), 422, code)
        mix = with_config(data={"prompts": ["a"], "ptx_texts_file": name}, loss={"ptx_coefficient": 1.0})
        refused(client.post("/v1/jobs", json=mix(spec)), 422, code)


def test_curl_d_is_told_what_to_type(client: TestClient) -> None:
    kinds = ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream")
    for path, kind in product(POSTS, kinds):
        response = client.post(path, content=CANARY, headers={"Content-Type": kind})
        assert "curl --json" in refused(response, 415, "unsupported_media_type")["detail"]


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    response = client.post("/v1/jobs", content=b"\x1f\x8b", headers=JSON | {"Content-Encoding": "gzip"})
    refused(response, 415, "unsupported_media_type")


def test_a_query_that_does_not_fit(client: TestClient) -> None:
    for name, value in (("limit", CANARY), ("limit", "9" * 5000), ("limit", "NaN"), ("status", CANARY)):
        problem = refused(client.get("/v1/jobs", params={name: value}), 422, "validation_error")
        assert problem["errors"][0]["pointer"].partition(".")[0] == f"query:{name}"


def test_a_number_that_no_column_holds(client: TestClient, spec: dict[str, Any]) -> None:
    here = client.post("/v1/jobs", json=spec).json()["links"]["self"]
    parts = ("events?after=", "metrics?from_step=", "samples?step=")
    for part, number in product(parts, ("-1", str(2**63), "9" * 400, "1.5")):
        refused(client.get(f"{here}/{part}{number}"), 422, "validation_error")


def test_a_cursor_that_is_none(client: TestClient) -> None:
    for cursor in (CANARY, "", "0", "job_\0", "job_" + "g" * 32):
        refused(client.get("/v1/jobs", params={"after": cursor}), 400, "invalid_cursor")


def test_an_idempotency_key_that_is_none(client: TestClient, spec: dict[str, Any]) -> None:
    for key in ("", "x" * 256, "with space", "\x7f"):
        response = client.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key})
        refused(response, 422, "validation_error")


def test_paths_and_methods_that_do_not_exist(client: TestClient) -> None:
    assert "instance" not in refused(client.get(f"/v1/{CANARY}"), 404, "not_found")
    refused(client.delete("/v1/jobs"), 405, "method_not_allowed")


def test_a_request_id_is_taken_over_only_if_it_is_harmless(client: TestClient) -> None:
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for hostile in ("a b", "x" * 129, '"><script>'):
        given_back = client.get("/health", headers={"X-Request-Id": hostile}).headers["x-request-id"]
        assert given_back.startswith("req_")


@pytest.mark.parametrize(
    ("header", "belongs"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"01-{TRACE}-{PARENT}-01-of a later version", True),
        (f"00-{TRACE}-{PARENT}-01-more", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{TRACE}-{PARENT}-01\n", False),
        (f"00-{TRACE}-{PARENT}", False),
        ("", False),
    ],
)
def test_a_trace_id_is_taken_over_only_as_w3c_has_it(header: str, *, belongs: bool) -> None:
    """The cases of Trace Context's section 3.2: versions, all-zero ids, lower case."""
    assert trace_id_of(header.encode()) == (TRACE if belongs else None)


def test_a_database_that_is_gone_is_a_503_and_a_bug_is_a_500_without_its_story(
    client: TestClient, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE jobs")
    gone = client.get("/v1/jobs")
    assert (gone.status_code, gone.json()["code"]) == (503, "database_unavailable")
    assert gone.headers["retry-after"].isdecimal()
    assert gone.json()["retryable"] is True

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(store, "list_jobs", broken)
    with capture_logs() as logs:
        refused(client.get("/v1/jobs"), 500, "internal")
    error, request = logs
    assert (error["error"], request["status"]) == ("RuntimeError", 500)
    assert "in broken" not in str(error)  # places, no source lines
    assert any(place.endswith(" broken") for place in error["at"])
    assert CANARY not in str(logs)


# -- generated ----------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20)
FIELDS = (
    "config type model name kl policy reference probs logits logprobs input policy_logprobs "
    "reference_logprobs reward beta metadata data prompts kind"
)
NAMES = st.sampled_from(FIELDS.split()) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)
TEXTS = VALUES.map(lambda value: json.dumps(value).encode("utf-8", "replace"))  # NaN and 10**40 included
FRAGMENTS = st.lists(
    st.sampled_from([b'{"', b'":', b"}", b"[", b"]", b",", b"NaN", b"1e999", b"-", b'"\\ud800"', b"\xff"])
    | st.binary(max_size=6),
    max_size=12,
).map(b"".join)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.usefixtures("answering")
def test_no_body_makes_a_5xx(client: TestClient, path: str) -> None:
    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
    @given(body=TEXTS | FRAGMENTS)
    def fuzz(body: bytes) -> None:
        response = client.post(path, content=body, headers=JSON)
        assert response.status_code < 500, (body, response.text)
        if response.status_code >= 400:
            assert len(response.content) <= MAX_BYTES
            assert response.json()["code"]

    fuzz()


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.usefixtures("answering")
def test_no_edit_of_a_good_body_makes_a_5xx(client: TestClient, path: str, spec: dict[str, Any]) -> None:
    """Bodies that get past the outer schema: one place of a valid request is replaced by anything."""
    good = {
        "/v1/jobs": [spec],
        "/v1/divergences": [
            {"policy": {"probs": [0.7, 0.3]}, "reference": {"logits": [0.5, 0.5]}},
            {"policy_logprobs": [-1.0], "reference_logprobs": [-2.0], "reward": 1.0, "beta": 0.1},
            {
                "policy_logprobs": [[-1.0], [-2.0, -1.0]],
                "reference_logprobs": [[-2.0], [-1.0, -1.0]],
                "kl": [[0.5], [0.5, 0.5]],
                "clusters": ["a", 1],
                "sampled_from": "policy",
                "reward": [1.0, 2.0],
                "beta": 0.1,
            },
        ],
        "/v1/scores": [
            {"input": "abc", "policy": "tuned", "reference": "base", "temperature": 1.0},
            {"input": ["a", {"prompt": "b", "completion": "c"}], "reward": [1.0, 0.5], "beta": 0.1},
            {"input": {"prompt": "b", "completion": "c"}, "quantities": ["kl", "k2"], "per_token": False},
        ],
    }[path]

    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
    @given(base=st.sampled_from(good), data=st.data())
    def fuzz(base: dict[str, Any], data: st.DataObject) -> None:
        body = json.loads(json.dumps(base))
        at: Any = body
        while True:
            places = list(at) if isinstance(at, dict) else list(range(len(at)))
            place = data.draw(st.sampled_from(places))
            if not (isinstance(at[place], dict | list) and at[place] and data.draw(st.booleans())):
                break
            at = at[place]
        at[place] = data.draw(VALUES)
        content = json.dumps(body).encode("utf-8", "replace")
        response = client.post(path, content=content, headers=JSON)
        assert response.status_code < 500, (content, response.text)

    fuzz()
