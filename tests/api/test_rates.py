"""Rate limits of keys and quotas of owners: exactly so many, and answers that say so."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api import rates as rooms
from api.rates import RequestRates
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from jobs.states import Action

NewKey = Callable[..., dict[str, str]]
LIMIT = 30


class Clock:
    def __init__(self) -> None:
        self.time = 50.0

    def __call__(self) -> float:
        return self.time


def test_a_bucket_holds_a_minutes_worth_and_refills_evenly() -> None:
    clock = Clock()
    rates = RequestRates(6, clock)
    taken = [rates.take("a") for _ in range(8)]
    assert [rate.allowed for rate in taken] == [True] * 6 + [False] * 2
    assert [rate.remaining for rate in taken] == [5, 4, 3, 2, 1, 0, 0, 0]
    # One request comes back every 10 s: after k requests the bucket is full in 10·k s, the next one due in 10 s.
    assert [rate.reset_s for rate in taken] == [10, 20, 30, 40, 50, 60, 10, 10]
    assert rates.take("b").remaining == 5  # another key's bucket
    clock.time += 9.5
    assert rates.take("a") == (False, 0, 1)
    clock.time += 0.5
    assert rates.take("a").allowed
    clock.time += 3600
    assert rates.take("a").remaining == 5  # no more than a bucketful


def test_over_an_hour_of_trying_a_key_gets_its_rate_and_one_bucketful() -> None:
    clock = Clock()
    rates = RequestRates(60, clock)
    allowed = 0
    for _ in range(3600 * 4):
        allowed += rates.take("a").allowed
        clock.time += 0.25
    assert allowed == 60 + 3600 - 1  # the last try was a quarter of a second before the hour's last refill


def test_the_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MOST_BUCKETS", 2)
    rates = RequestRates(5, Clock())
    for key in ("a", "b", "a", "c"):
        rates.take(key)
    assert (rates.take("a").remaining, rates.take("b").remaining) == (2, 4)  # b was used longest ago


@pytest.fixture
def limited(new_app: Callable[[Settings], FastAPI], settings: Settings) -> Iterator[TestClient]:
    narrow = {"unsafe_no_auth": False, "requests_per_minute": LIMIT, "queued_jobs_per_owner": 5}
    app = new_app(settings.model_copy(update=narrow))
    app.state.parts.rates._monotonic = Clock()  # nothing comes back while the test runs
    with TestClient(app) as client:
        yield client


def test_requests_at_once_get_exactly_the_limit(limited: TestClient, new_key: NewKey) -> None:
    mine, other = new_key(), new_key()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: limited.get("/v1/models", headers=mine), range(LIMIT * 4)))
    passed = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(passed), len(refused)) == (LIMIT, LIMIT * 3)
    left = sorted(answer.headers["ratelimit"].split(";")[1] for answer in passed)
    assert left == sorted(f"r={n}" for n in range(LIMIT))
    for answer in refused:
        body = answer.json()
        assert (body["code"], body["retryable"]) == ("rate_limited", True)
        assert answer.headers["retry-after"] == "2"  # 30 a minute: one every 2 s
        assert answer.headers["ratelimit-policy"] == f'"requests";q={LIMIT};w=60'
        assert answer.headers["ratelimit"] == '"requests";r=0;t=2'
    assert limited.get("/v1/models", headers=other).status_code == 200
    assert limited.get("/health").status_code == 200


def test_who_does_not_know_the_secret_spends_nothing_of_the_key(limited: TestClient, new_key: NewKey) -> None:
    mine = new_key()
    forged = {"Authorization": mine["Authorization"][:-43] + "A" * 43}
    for _ in range(LIMIT):
        assert limited.get("/v1/models", headers=forged).status_code == 401
    assert (
        limited.get("/v1/models", headers=mine).headers["ratelimit"].startswith(f'"requests";r={LIMIT - 1};')
    )


def test_every_answer_says_what_is_left(limited: TestClient, new_key: NewKey, spec: dict[str, Any]) -> None:
    mine = new_key()
    made = limited.post("/v1/jobs", json=spec, headers=mine)
    tag = {"If-None-Match": made.headers["etag"]}
    answers = [
        made,
        limited.get(made.headers["location"], headers=mine | tag),
        limited.get("/v1/jobs/none", headers=mine),
        limited.post("/v1/jobs", json={}, headers=mine),
        limited.get(made.headers["location"] + "/events", headers=new_key(scopes=())),
    ]
    assert [answer.status_code for answer in answers] == [201, 304, 404, 422, 403]
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == [
        "r=29",
        "r=28",
        "r=27",
        "r=26",
        "r=29",
    ]


def test_no_limit_is_no_header(
    new_app: Callable[[Settings], FastAPI], settings: Settings, new_key: NewKey
) -> None:
    app = new_app(settings.model_copy(update={"unsafe_no_auth": False, "requests_per_minute": 0}))
    answer = TestClient(app).get("/v1/models", headers=new_key())
    assert answer.status_code == 200
    assert "ratelimit" not in answer.headers


def test_creates_at_once_make_exactly_the_quota(
    limited: TestClient, store: SqlStore, new_key: NewKey, spec: dict[str, Any]
) -> None:
    siblings = [new_key(owner="team"), new_key(owner="team")]  # the quota is the owner's
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: limited.post("/v1/jobs", json=spec, headers=siblings[n % 2]), range(20))
        )
    made = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(made), len(refused)) == (5, 15)
    assert sorted(made) == sorted(job.id for job in store.list_jobs(owner="team"))
    body = refused[0].json()
    assert (body["code"], body["retryable"]) == ("quota_exceeded", True)
    assert body["context"] == {"quota": "queued or paused jobs", "limit": 5}
    assert refused[0].headers["retry-after"] == "30"
    assert limited.post("/v1/jobs", json=spec, headers=new_key()).status_code == 201
    store.request(made[0], Action.CANCEL)
    assert limited.post("/v1/jobs", json=spec, headers=siblings[0]).status_code == 201
