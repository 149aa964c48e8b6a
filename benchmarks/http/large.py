"""The same requests to a service with 100,000 jobs and 10 million metric values, and to one with 100 jobs.

What is answered is alike: pages of as many jobs, series of runs with 1,000 steps. So a ratio above 1 is what the
size of the database costs. It is one of the CPU time that the API takes: others on the machine disturb it least.
"""

import statistics
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from benchmarks.http.filled import BEGAN, KEYS, fill, job_id
from benchmarks.http.polls import Polls, wrk
from benchmarks.http.service import Service, service
from benchmarks.ratios import Ratio, spread
from benchmarks.service import cpu_s

SMALL, LARGE = 100, 100_000  # jobs
STEPS, LONG = 1_000, (100_000, 65_667)  # of the run that both have; of those that the large one has besides
SOME_KEYS = ",".join(KEYS[:5])
SECONDS, CONNECTIONS = 1, 4  # of one request, again and again
COUNTED = ("list_total", "list_before")  # walk along all of an owner's jobs in an index: no goal


class Size(NamedTuple):
    """A service, and what of it is asked for."""

    service: Service
    jobs: int
    long_steps: int  # of the longest run, and its job's number
    long_number: int

    @property
    def requests(self) -> dict[str, str]:
        """Paths by name."""
        middle, recent = job_id(self.jobs // 2), f"s{self.long_steps - 10}.a1"
        early = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(BEGAN + 60 * 30))}"
        return {
            "poll_304": f"/v1/jobs/{middle}",
            "poll_200": f"/v1/jobs/{middle}",
            "list_first": "/v1/jobs",
            "list_304": "/v1/jobs",
            "list_oldest": "/v1/jobs?order=asc",
            "list_deep": f"/v1/jobs?after={job_id(self.jobs // 2 + 1)}",
            "list_live": "/v1/jobs?status=running&status=queued",
            "list_failed": "/v1/jobs?status=failed&limit=4",
            "list_team": "/v1/jobs?metadata%5Bteam%5D=team-1&limit=15",
            "list_before": f"/v1/jobs?created_before={early}",
            "list_total": "/v1/jobs?include=total",
            "events": f"/v1/jobs/{middle}/events",
            "metrics_minmax": f"/v1/jobs/{job_id(1)}/metrics?keys={SOME_KEYS}",
            "metrics_since": f"/v1/jobs/{job_id(self.long_number)}/metrics?keys={SOME_KEYS}&after={recent}",
        }


def large(registry: Path, rounds: int) -> dict[str, Any]:
    """Both services, by turns."""
    with (
        service(registry, partial(fill, jobs_number=SMALL, runs=[STEPS])) as few,
        service(registry, partial(fill, jobs_number=LARGE, runs=[STEPS, *LONG])) as many,
    ):
        sizes = Size(few, SMALL, STEPS, 1), Size(many, LARGE, LONG[0], 2)
        headers = [_headers(size) for size in sizes]
        taken: dict[str, tuple[list[Polls], list[Polls]]] = {name: ([], []) for name in sizes[0].requests}
        for place in range(rounds):
            for name, both in taken.items():
                turns = list(zip(sizes, headers, both, strict=True))
                for size, tags, runs in turns[:: -1 if place % 2 else 1]:
                    runs.append(_asked(size, name, tags[name]))
        long_s = statistics.median(_cpu_s(many, _long_run()) for _ in range(3))
    ratios = {}
    for name, (small, big) in taken.items():
        ratios[name] = Ratio.of([x.cpu_us for x in big], [x.cpu_us for x in small])
        small_us, big_us = (statistics.median(x.cpu_us for x in runs) for runs in (small, big))
        print(f"  {name:15} {small_us:7.0f} µs of CPU, large {big_us:7.0f}   ratio {spread(ratios[name])}")
    grown = 1e6 * long_s / statistics.median(x.cpu_us for x in taken["metrics_minmax"][1]) / (LONG[0] / STEPS)
    print(
        f"  5 keys of {LONG[0]:,} steps: {long_s:.2f} s, {grown:.2f} of {LONG[0] // STEPS} runs of {STEPS:,}"
    )
    told = {f"large_{name}": round(ratio.median, 3) for name, ratio in ratios.items()}
    return told | {"large_long_run_over_linear": round(grown, 3)}


def _headers(size: Size) -> dict[str, Mapping[str, str]]:
    """Of each request: where it is to be answered by 304, with the tag that it has now. All of them are tried."""
    found = {}
    for name, path in size.requests.items():
        answer = httpx2.get(size.service.url + path, headers=size.service.authorization)
        answer.raise_for_status()
        tag = {"If-None-Match": answer.headers["etag"]} if name.endswith("304") else {}
        found[name] = size.service.authorization | tag
    return found


def _asked(size: Size, name: str, headers: Mapping[str, str]) -> Polls:
    url, expected = size.service.url + size.requests[name], 304 if name.endswith("304") else 200
    return wrk(url, size.service.api, headers, expected, connections=CONNECTIONS, seconds=SECONDS)


def _long_run() -> str:
    return f"/v1/jobs/{job_id(2)}/metrics?keys={SOME_KEYS}"


def _cpu_s(service: Service, path: str) -> float:
    before = cpu_s(service.api)
    httpx2.get(service.url + path, headers=service.authorization, timeout=60).raise_for_status()
    return cpu_s(service.api) - before
