"""Polls by wrk: of a job that has not changed (304), of one whose document is wanted (200), of a bare handler."""

import re
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import httpx2

from benchmarks.http.service import Service, bare
from benchmarks.ratios import Ratio, spread
from benchmarks.service import cpu_s
from kleash import Client

CONNECTIONS, ROUND_S = 16, 2
TEXT = "The film was a quiet pleasure, and the ending of the novel is better than the first chapter."
UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


class Polls(NamedTuple):
    """One run of wrk."""

    per_s: float
    cpu_us: float  # of the answering process for each request
    p50_ms: float
    p99_ms: float


def require_wrk() -> None:
    """Raises RuntimeError where there is none."""
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk (Debian: apt-get install wrk)")


def wrk(
    url: str,
    process: int,
    headers: Mapping[str, str],
    expected: int,
    *,
    connections: int,
    seconds: int = ROUND_S,
) -> Polls:
    """Ask for so many seconds. Raises RuntimeError where another status came back."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    command += [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]
    before = cpu_s(process)
    told = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    spent = cpu_s(process) - before
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    if refused:
        raise RuntimeError(f"{refused[1]} answers were not {expected}: {told}")
    found = re.search(r"(\d+) requests in ([\d.]+)s", told)
    assert found is not None, told
    requests, took_s = int(found[1]), float(found[2])
    return Polls(requests / took_s, 1e6 * spent / requests, _latency(told, "50%"), _latency(told, "99%"))


def _latency(told: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", told)
    assert found is not None, told
    return float(found[1]) * UNIT_MS[found[2]]


def idle(service: Service, rounds: int) -> dict[str, Any]:
    """Of a job that has ended, on a service with nothing else to do."""
    job_id = ended(service.client())
    return beside_bare(service, "poll", rounds, unchanged=job_id, wanted=job_id)


def beside_bare(service: Service, name: str, rounds: int, *, unchanged: str, wanted: str) -> dict[str, Any]:
    """Interleaved rounds: the bare handler, 304s of one job, documents of a job."""
    ours, tag = service.authorization, tag_of(service, unchanged)
    jobs, found = f"{service.url}/v1/jobs/", dict[str, list[Polls]](bare=[], **{"304": [], "200": []})
    with bare() as (constant, process):
        for _ in range(rounds + 1):  # the first fills caches
            found["bare"].append(wrk(constant, process, {}, 200, connections=CONNECTIONS))
            found["304"].append(wrk(jobs + unchanged, service.api, ours | tag, 304, connections=CONNECTIONS))
            found["200"].append(wrk(jobs + wanted, service.api, ours, 200, connections=CONNECTIONS))
    table = {kind: runs[1:] for kind, runs in found.items()}
    told = {}
    for kind, goal in (("304", 1.5), ("200", 3.0)):
        slower = Ratio.of([x.per_s for x in table["bare"]], [x.per_s for x in table[kind]])
        costs = Ratio.of([x.cpu_us for x in table[kind]], [x.cpu_us for x in table["bare"]])
        p99_ms = statistics.median(x.p99_ms for x in table[kind])
        print(f"{name} {kind}: bare handler's requests/s over ours {spread(slower)}   goal {goal}")
        print(f"  CPU over its {spread(costs)}   99 % within {p99_ms:.1f} ms")
        told[f"{name}_{kind}_over_bare"] = round(slower.median, 3)
        told[f"{name}_{kind}_cpu_over_bare"] = round(costs.median, 3)
    return told


def ended(client: Client) -> str:
    """The id of a job that will not change any more."""
    job_id = client.jobs.create(TRAINING)["id"]
    client.jobs.cancel(job_id)
    client.jobs.wait(job_id, timeout_s=120)
    return job_id


def tag_of(service: Service, job_id: str) -> dict[str, str]:
    """The header of a poll that is answered by 304."""
    answer = httpx2.get(f"{service.url}/v1/jobs/{job_id}", headers=service.authorization)
    return {"If-None-Match": answer.headers["etag"]}


def prompts(count: int) -> Sequence[str]:
    """Different ones."""
    return [f"The day was number {place} and it was" for place in range(count)]


TRAINING = {
    "config": {
        "model": {"name": "smollm2-135m-instruct", "lora": {"rank": 4}},
        "data": {"prompts": prompts(2)},
        "reward": {"kind": "sentiment"},
        "rollout": {"batch_size": 2, "max_new_tokens": 4},
        "optimization": {"steps": 10_000, "learning_rate": 1e-6},
        "checkpoint": {"every_steps": 10_000},
    }
}
