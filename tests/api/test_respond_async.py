"""`Prefer: respond-async` on POST /v1/scores: the same texts as a score job."""

import pytest

from jobs.scoring_wire import ScoreItem
from tests.api.byte_scorer import replying

ASYNC = {"Prefer": "respond-async, wait=10"}


def test_a_job_is_made_of_the_request(client, store, broker, settings):
    body = {
        "input": [
            "ab",
            {"prompt": "a", "completion": "b"},
            [1, 2],
            {"token_ids": [1, 2, 3], "score_from": 2},
        ],
        "quantities": ["kl", "kl"],
        "temperature": 0.7,
        "top_k": 3,
        "truncation": "left",
        "sampled_from": "policy",
        "vocab_mismatch": "intersect",
        "metadata": {"team": "rl"},
    }
    answer = client.post("/v1/scores", json=body, headers=ASYNC)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert answer.headers["preference-applied"] == "respond-async"
    assert client.get(answer.headers["location"]).json() == job
    assert (job["type"], job["status"], job["metadata"]) == ("score", "queued", {"team": "rl"})
    config = store.get_job(job["id"]).score
    assert (config.temperature, config.top_k, config.per_token, config.quantities) == (0.7, 3, True, ("kl",))
    assert (config.sampled_from, config.vocab_mismatch) == ("policy", "intersect")
    how = {"truncation": "left"}
    told = [ScoreItem(**item.model_dump(exclude={"id", "reward"})) for item in config.items]
    assert told == [
        ScoreItem(text="ab", **how),
        ScoreItem(prompt="a", text="b", **how),
        ScoreItem(token_ids=[1, 2], score_from=1, **how),
        ScoreItem(token_ids=[1, 2, 3], score_from=2, **how),
    ]


def test_a_repeat_with_its_key_is_the_same_job(client):
    keyed = ASYNC | {"Idempotency-Key": "k"}
    first, again = (client.post("/v1/scores", json={"input": "ab"}, headers=keyed) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    other = client.post("/v1/scores", json={"input": "abc"}, headers=keyed)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    "more",
    [
        {"reward": 1.0, "beta": 0.1},
        {"attribution": True},
        {"encoding_format": "base64"},
        {"request_timeout_s": 5.0},
        {"offsets": "utf16"},
        {"sampled_from": "reference"},
        {"top_k": 2, "per_token": False},
    ],
)
def test_what_no_job_has_is_refused_by_name(client, more):
    refused = client.post("/v1/scores", json={"input": "ab"} | more, headers=ASYNC)
    assert (refused.status_code, refused.json()["code"]) == (422, "unsupported_option")
    assert [error["pointer"].removeprefix("/") in more for error in refused.json()["errors"]] == [True]


def test_a_preference_that_is_not_ours_changes_nothing(client, scorer):
    scorer.answer = replying(0.5)
    answer = client.post("/v1/scores", json={"input": "ab"}, headers={"Prefer": "wait=10"})
    assert answer.status_code == 200
    assert "serialize;dur=" in answer.headers["server-timing"]
