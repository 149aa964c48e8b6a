"""/metrics: what Prometheus reads is what was done, and no client can make it grow."""

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.exposition import Family, Sample, exposition
from jobs.sql_store import SqlStore
from tests.api.test_workers import card

NAME, LABEL = r"[a-z_]+", r'[a-z]+="(?:[^"\\\n]|\\["\\n])*"'
LINE = re.compile(rf"({NAME}(?:{{{LABEL}(?:,{LABEL})*}})?) (-?[0-9.e+-]+|NaN|[+-]Inf)")
HEAD = re.compile(rf"# (HELP|TYPE) ({NAME}) (.+)")


def numbers(text: str) -> dict[str, float]:
    """By `name{label="value"}`. Of each family HELP and TYPE come first, and no line comes twice."""
    found: dict[str, float] = {}
    known: list[str] = []
    assert text.endswith("\n")
    for line in text.splitlines():
        if head := HEAD.fullmatch(line):
            known += [head[2]] if head[1] == "TYPE" else []
            continue
        sample = LINE.fullmatch(line)
        assert sample, line
        assert sample[1] not in found
        assert sample[1].startswith(known[-1])
        found[sample[1]] = float(sample[2])
    assert len(set(known)) == len(known)
    return found


def test_the_numbers_are_those_of_what_was_done(
    client: TestClient, store: SqlStore, spec: dict[str, Any], scorer: Any
) -> None:
    for priority in (5, 9, 5):
        job_id = client.post("/v1/jobs", json=spec | {"priority": priority}).json()["id"]
    assert store.claim(job_id, 1, worker="h:1", lease_s=60)
    for name in ("h:1", "h:2"):
        store.record_worker(card(name, "cpu"))
    scorer.is_ready = False
    client.get("/v1/jobs/x")
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = numbers(answer.text)
    assert found['kleash_jobs{status="queued"}'] == 2
    assert found['kleash_jobs{status="running"}'] == 1
    assert (found['kleash_jobs_queued{priority="5"}'], found['kleash_jobs_queued{priority="9"}']) == (1, 1)
    assert 0 <= found["kleash_queue_wait_seconds"] < 60
    assert [found[f'kleash_workers{{state="{s}"}}'] for s in ("busy", "idle", "stale")] == [1, 1, 0]
    assert [found[f'kleash_part_up{{part="{p}"}}'] for p in ("database", "scorer")] == [1, 0]
    made = 'kleash_http_requests_total{method="POST",route="/v1/jobs",status="201"}'
    missed = 'kleash_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"}'
    assert (found[made], found[missed]) == (3, 1)
    times = [
        found[f'kleash_http_request_seconds_bucket{{route="/v1/jobs",le="{le}"}}'] for le in ("60.0", "+Inf")
    ]
    assert times == [3, 3] == [3, found['kleash_http_request_seconds_count{route="/v1/jobs"}']]
    assert numbers(client.get("/metrics").text)[made] == 3


def test_no_client_makes_a_series_of_its_own(client: TestClient) -> None:
    client.get("/metrics")
    before = set(numbers(client.get("/metrics").text))
    for n in range(20):
        client.request(f"BREW{n}", f"/v1/pot/{n}")
        client.get(f"/v1/jobs?limit={n}", headers={"X-Request-Id": f"r{n}"})
    new = set(numbers(client.get("/metrics").text)) - before
    assert {name for name in new if "_total" in name} == {
        'kleash_http_requests_total{method="other",route="",status="404"}',
        'kleash_http_requests_total{method="GET",route="/v1/jobs",status="200"}',
    }


def test_a_database_that_is_down_is_told_and_its_numbers_left_out(
    client: TestClient, store: SqlStore
) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE workers")
        connection.exec_driver_sql("DROP TABLE api_keys")
    found = numbers(client.get("/metrics").text)
    assert found['kleash_part_up{part="database"}'] == 0
    assert not [name for name in found if name.startswith("kleash_jobs")]


@pytest.mark.parametrize(
    ("value", "written"), [("plain", "plain"), ('a"b', 'a\\"b'), ("a\\b", "a\\\\b"), ("a\nb", "a\\nb")]
)
def test_a_label_is_escaped(value: str, written: str) -> None:
    text = exposition([Family("x", "gauge", "Help.", [Sample(1.5, {"le": value})])])
    assert text == f'# HELP x Help.\n# TYPE x gauge\nx{{le="{written}"}} 1.5\n'
