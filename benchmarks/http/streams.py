"""500 clients that follow events by streams, and polls beside them.

Most follow one job, the rest a few jobs of their own. Every client must be sent each event of its job once, in
order, and `done`. Late is the last of the crowd: from an event's writing until all of them have it. An event of a
worker waits for the API's next look (TICK_S), one that the API writes itself does not.
"""

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from api.services.live import TICK_S
from benchmarks.http.event_clients import Follower, followers
from benchmarks.http.polls import CONNECTIONS, Polls, ended, tag_of, wrk
from benchmarks.http.service import Service
from benchmarks.http.worked import WorkedJob, working
from benchmarks.ratios import Ratio, spread
from benchmarks.service import cpu_s
from jobs.sql_store import SqlStore

CROWD, OTHER_JOBS, OF_EACH = 400, 20, 5
NOTES, APART_S, ASKED = 16, 0.13, 4  # events of the worker, the time between two, and of the API


class Round(NamedTuple):
    """What one round has shown; times in seconds."""

    without: Polls
    silent: Polls  # beside streams without news
    eventful: Polls
    opened_s: float  # until all clients had their snapshots
    cpu_us: float  # of the API for one event at one client
    workers_late_s: list[float]
    own_late_s: list[float]
    beside_polls_late_s: list[float]


def streams(service: Service, rounds: int) -> dict[str, Any]:
    """Rounds of polls without streams, beside silent ones, and beside events."""
    with working(service) as store:
        polled = ended(service.client())
        found = [asyncio.run(_round(service, store, polled)) for _ in range(rounds)]
    silent = Ratio.of([one.silent.per_s for one in found], [one.without.per_s for one in found])
    eventful = Ratio.of([one.eventful.per_s for one in found], [one.without.per_s for one in found])
    late = {
        "an event of a worker": [x for one in found for x in one.workers_late_s],
        "one of the API itself": [x for one in found for x in one.own_late_s],
        "a worker's beside polls": [x for one in found for x in one.beside_polls_late_s],
    }
    opened, cpu_us = (
        statistics.median(x) for x in zip(*((x.opened_s, x.cpu_us) for x in found), strict=True)
    )
    count = CROWD + OTHER_JOBS * OF_EACH
    print(f"{count} streams: all open after {opened:.2f} s; {cpu_us:.0f} µs of CPU for an event at a client")
    for name, seconds in late.items():
        median, worst = 1000 * statistics.median(seconds), 1000 * max(seconds)
        print(f"  {name} is with the last of {CROWD} after {median:.0f} ms, at worst {worst:.0f} ms")
    print(
        f"  304s beside silent streams over those without {spread(silent)}, beside events {spread(eventful)}"
    )
    return {
        "streams_late_over_tick": round(statistics.median(late["an event of a worker"]) / TICK_S, 3),
        "streams_late_worst_over_tick": round(max(late["an event of a worker"]) / TICK_S, 3),
        "streams_own_late_ms": round(1000 * statistics.median(late["one of the API itself"])),
        "streams_cpu_us": round(cpu_us),
        "streams_polls_beside_silent": round(silent.median, 3),
        "streams_polls_beside_events": round(eventful.median, 3),
    }


async def _round(service: Service, store: SqlStore, polled: str) -> Round:
    url, asked = f"{service.url}/v1/jobs/{polled}", service.authorization | tag_of(service, polled)

    async def polls() -> Polls:
        return await asyncio.to_thread(wrk, url, service.api, asked, 304, connections=CONNECTIONS)

    without = await polls()
    crowded, *others = (WorkedJob(store) for _ in range(1 + OTHER_JOBS))
    job_ids = [crowded.id] * CROWD + [other.id for other in others] * OF_EACH
    began = time.monotonic()
    async with followers(service, job_ids) as clients:
        opened_s = time.monotonic() - began
        silent = await polls()
        before = cpu_s(service.api)
        await _notes(crowded, others, NOTES)
        spent = cpu_s(service.api) - before
        for action in ("pause", "resume") * (ASKED // 2):
            await asyncio.to_thread(getattr(service.client().jobs, action), crowded.id)
            await asyncio.sleep(APART_S)
        polling = asyncio.create_task(polls())
        noted = 0
        while not polling.done():
            await _notes(crowded, others, 1)
            noted += 1
        eventful = await polling
        for job in (crowded, *others):
            await asyncio.to_thread(job.end)
    counts = {job.id: job.events() for job in (crowded, *others)}
    for client in clients:
        client.check(counts[client.job_id])
    crowd = clients[:CROWD]
    return Round(
        without,
        silent,
        eventful,
        opened_s,
        1e6 * spent / (NOTES * (CROWD + OF_EACH)),
        _late_s(crowd, ["note"])[:NOTES],
        _late_s(crowd, ["job.pausing", "job.pause_withdrawn"]),
        _late_s(crowd, ["note"])[NOTES:],
    )


async def _notes(crowded: WorkedJob, others: Sequence[WorkedJob], number: int) -> None:
    """Events, each with one of another job."""
    for other in itertools.islice(itertools.cycle(others), number):
        await asyncio.to_thread(crowded.note)
        await asyncio.to_thread(other.note)
        await asyncio.sleep(APART_S)


def _late_s(crowd: Sequence[Follower], types: Sequence[str]) -> list[float]:
    """Of each event of these types: from its writing until the last client has it."""
    return [
        max(one.at - one.written for one in same)
        for same in zip(*(client.events for client in crowd), strict=True)
        if same[0].type in types
    ]
