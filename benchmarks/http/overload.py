"""Four times as many scoring requests as the service can answer: how much of its peak it still gives.

Peak is the most that closed loops of some numbers of clients get. Overload is an open loop: requests arrive at
their times whether the earlier ones were answered or not, and nobody tries again.
"""

import asyncio
import statistics
import time
from collections import Counter
from typing import Any

import httpx2

from benchmarks.http.polls import TEXT
from benchmarks.http.service import Service

DEADLINE_S, ROUND_S, OVERLOAD = 20, 12.0, 4
CLIENTS, CLIMB_S = (16, 32), 20.0  # tried for the peak, so long each
EXPECTED = ("200", "503 with Retry-After", "429 with Retry-After", "504")
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=None)


def overload(service: Service, rounds: int) -> dict[str, Any]:
    """Peak and overload in turn."""
    return asyncio.run(_overload(service, rounds))


async def _overload(service: Service, rounds: int) -> dict[str, Any]:
    ratios, statuses = list[float](), Counter[str]()
    async with httpx2.AsyncClient(
        base_url=service.url, headers=service.authorization, limits=LIMITS, timeout=2 * DEADLINE_S
    ) as client:
        await _answered(client, CLIENTS[0], 2.0)
        for number in range(rounds):
            ladder = {clients: await _answered(client, clients, CLIMB_S) for clients in CLIENTS}
            peak = max(ladder.values())
            answers = await _arrive(client, OVERLOAD * peak, ROUND_S, number)
            good = answers["200"] / ROUND_S
            ratios.append(good / peak)
            statuses += answers
            climbed = ", ".join(f"{per_s:.1f}/s for {clients} clients" for clients, per_s in ladder.items())
            print(f"{climbed}; {OVERLOAD} times the peak asked for: {good:.1f}/s answered")
    median = statistics.median(ratios)
    print(f"goodput over peak {median:.2f} (goal 0.8); {dict(statuses)}")
    return {"overload_goodput_over_peak": round(median, 3), "overload_answers": dict(statuses)}


async def _score(client: httpx2.AsyncClient, name: str) -> str:
    body = {"input": [f"{TEXT} {name}"], "per_token": False, "request_timeout_s": DEADLINE_S}
    answer = await client.post("/v1/scores", json=body)
    status = str(answer.status_code) + (" with Retry-After" if "retry-after" in answer.headers else "")
    if status not in EXPECTED:
        raise RuntimeError(f"{status}: {answer.text}")
    return status


async def _answered(client: httpx2.AsyncClient, clients: int, seconds: float) -> float:
    """Scores a second that so many clients get who each wait for an answer before they ask again."""
    began, done = time.monotonic(), 0

    async def loop(place: int) -> None:
        nonlocal done
        while time.monotonic() < began + seconds:
            status = await _score(client, f"{place} {began} {done}")
            done += status == "200"  # not in one line, which would read `done` before it waits

    await asyncio.gather(*map(loop, range(clients)))
    return done / (time.monotonic() - began)


async def _arrive(client: httpx2.AsyncClient, per_s: float, seconds: float, number: int) -> Counter[str]:
    """What became of requests that came at that rate. An answer counts when its request arrived in the time."""
    began, tasks = time.monotonic(), list[asyncio.Task[str]]()
    for place in range(round(per_s * seconds)):
        await asyncio.sleep(max(0.0, began + place / per_s - time.monotonic()))
        tasks.append(asyncio.create_task(_score(client, f"{number} of {place}")))
    found = Counter(await asyncio.gather(*tasks))
    spent = time.monotonic() - began
    found["200"] = round(found["200"] * seconds / spent)  # as a rate over all the time that answers took
    return found
