"""GET /v1/jobs: filters, order, pages, and what a query string may hold."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.schemas import rfc3339
from jobs.sql_store import SqlStore
from tests.api.acting import claimed, create

ODD = ("", " ", "\x00", "[]", "]", "é", "\U0001f600", "%00", "a=b&c", "'", '"', "\\", "x" * 600, "null")


def ids(client: TestClient, params: Any) -> list[str]:
    response = client.get("/v1/jobs", params=params)
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["data"]]


def test_filters_must_all_fit(client: TestClient, store: SqlStore, spec: dict[str, Any]) -> None:
    first = create(client, spec | {"metadata": {"team": "rl", "run": "1"}})["id"]
    second = create(client, spec | {"metadata": {"team": "rl", "run": "2"}})["id"]
    third = create(client, {"type": "score", "config": {"items": ["a"]}, "metadata": {"team": "eval"}})["id"]
    claimed(store, second)
    for params, expected in (
        ([("metadata[team]", "rl")], [second, first]),
        ([("metadata[team]", "rl"), ("metadata[run]", "1")], [first]),
        ([("metadata[team]", "rl"), ("order", "asc")], [first, second]),
        ([("metadata[team]", "r")], []),
        ([("status", "queued")], [third, first]),
        ([("status", "queued"), ("status", "running")], [third, second, first]),
        ([("status", "queued"), ("type", "ppo")], [first]),
        ([("type", "score")], [third]),
    ):
        assert ids(client, params) == expected, params
        total = client.get("/v1/jobs", params=[*params, ("include", "total"), ("limit", "1")]).json()["total"]
        assert total == len(expected)
    assert client.get("/v1/jobs").json()["total"] is None


@given(st.floats(0, 4e9), st.integers(0, 4 * 10**12))
def test_a_time_that_is_shown_is_the_last_millisecond_that_is_not_later(seconds: float, ms: int) -> None:
    def shown(time: float) -> float:
        return datetime.fromisoformat(rfc3339(time)).timestamp()

    assert shown(seconds) <= seconds < shown(seconds) + 0.001 + 1e-6  # a double near 4e9 s is 5e-7 s wide
    assert shown(ms / 1000) == ms / 1000
    assert shown(math.nextafter((ms + 1) / 1000, 0)) <= ms / 1000


def test_windows_of_time_meet_without_a_gap(client: TestClient, spec: dict[str, Any]) -> None:
    jobs = [create(client, spec) for _ in range(3)]
    for job in jobs:
        at = job["created_at"]
        before, after = ids(client, {"created_before": at}), ids(client, {"created_after": at})
        assert sorted(before + after) == sorted(each["id"] for each in jobs)
        assert job["id"] in after
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert later.endswith("+00:00")
    assert len(ids(client, {"created_before": later})) == 3
    assert ids(client, {"created_after": later.replace("+00:00", "-02:00")}) == []


def test_pages_are_linked_in_both_orders_whatever_the_filter(
    client: TestClient, spec: dict[str, Any]
) -> None:
    made = [create(client, spec | {"metadata": {"a b&": "é/+"}})["id"] for _ in range(5)]
    create(client, spec)
    for order, expected in (("asc", made), ("desc", made[::-1])):
        query = httpx2.QueryParams({"order": order, "limit": 2, "metadata[a b&]": "é/+"})
        url, seen = f"/v1/jobs?{query}", []
        while url:
            response = client.get(url)
            page = response.json()
            seen += [job["id"] for job in page["data"]]
            link = response.headers.get("link", "")
            assert link.endswith('>; rel="next"') == page["has_more"]
            url = link.removeprefix("<").partition(">")[0]
        assert seen == expected


def test_a_cursor_of_another_list_is_safe(client: TestClient, spec: dict[str, Any]) -> None:
    oldest, middle, newest = (create(client, spec)["id"] for _ in range(3))
    assert ids(client, {"after": middle}) == [oldest]
    assert ids(client, {"after": middle, "order": "asc"}) == [newest]
    assert ids(client, {"after": middle, "status": "failed"}) == []
    assert ids(client, {"after": "job_" + "f" * 32}) == [newest, middle, oldest]


def test_odd_metadata_is_found_or_refused_and_never_an_error(
    client: TestClient, spec: dict[str, Any]
) -> None:
    made: dict[str, str] = {}
    for key in ODD:
        if 0 < len(key) <= 64:
            made[key] = create(client, spec | {"metadata": {key: "v"}})["id"]
    for key, value in [(key, "v") for key in ODD] + [("k", value) for value in ODD]:
        response = client.get("/v1/jobs", params={f"metadata[{key}]": value})
        assert response.status_code == (200 if key else 422), (key, value)
        if key:
            expected = [made[key]] if value == "v" and key in made else []
            assert [job["id"] for job in response.json()["data"]] == expected


QUERIES = [
    ("stauts=queued", "invalid_query"),
    ("metadata=x", "invalid_query"),
    ("metadata[a", "invalid_query"),
    ("metadata[]=x", "invalid_query"),
    ("metadata[a]=1&metadata[a]=2", "invalid_query"),
    ("&".join(f"metadata[k{n}]=v" for n in range(17)), "invalid_query"),
    ("status[a]=queued", "invalid_query"),
    ("%00=1", "invalid_query"),
    ("%F0%9F%98%80=1", "invalid_query"),
    ("x" * 3000, "invalid_query"),
    ("status=nonsense", "validation_error"),
    ("&".join(["status=queued"] * 17), "validation_error"),
    ("type=sft", "validation_error"),
    ("order=up", "validation_error"),
    ("include=config", "validation_error"),
    ("created_after=yesterday", "validation_error"),
    ("created_after=1700000000", "validation_error"),
    ("created_after=2026-02-31T00:00:00Z", "validation_error"),
    ("created_after=2026-01-01T00:00:00", "validation_error"),
    ("created_after=2026-01-01T00:00:00+00:00", "validation_error"),  # a + is a blank here
    ("created_after=0001-01-01T00:00:00%2B23:59", "ok"),
    ("created_before=9999-12-31T23:59:59.999999999Z", "ok"),
    ("after=job_1", "invalid_cursor"),
]


def test_what_a_query_may_not_hold(client: TestClient) -> None:
    for query, code in QUERIES:
        response = client.get(f"/v1/jobs?{query}")
        assert response.json().get("code", "ok") == code, query
        assert response.status_code in (200, 400, 422)
        assert len(response.content) <= 2048


def test_a_misspelt_parameter_is_told_its_name(client: TestClient, spec: dict[str, Any]) -> None:
    refused = client.get("/v1/jobs?stauts=queued").json()
    assert (refused["status"], refused["detail"]) == (422, "unknown query parameter; did you mean status?")
    refused = client.post("/v1/jobs?dryrun=true", json=spec).json()
    assert (refused["code"], refused["detail"]) == (
        "invalid_query",
        "unknown query parameter; did you mean dry_run?",
    )
    assert ids(client, {}) == []
