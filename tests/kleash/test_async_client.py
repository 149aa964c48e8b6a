"""The async client carries out the same plans; what they do is tested with the sync one."""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from kleash import AsyncClient, KleashError
from tests.kleash.scripted import Service, a_job, problem


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_it_asks_waits_and_tries_again_with_the_same_key(service: Service) -> None:
    busy = (503, {"Retry-After": "0"}, {"code": "overloaded", "detail": "the queue is full"})
    done = (200, {"ETag": '"2"'}, a_job("succeeded", 4))
    service.answers = [busy, (201, {}, a_job()), (200, {"ETag": '"1"'}, a_job()), (304, {}, None), done]

    async def work() -> Any:
        async with AsyncClient(service.url) as client:
            job = await client.jobs.create({"config": {}})
            return await client.jobs.wait(job["id"], every_s=0)

    assert run(work())["status"] == "succeeded"
    assert len({asked.headers["idempotency-key"] for asked in service.asked[:2]}) == 1
    assert [asked.headers.get("if-none-match") for asked in service.asked[2:]] == [None, '"1"', '"1"']


def test_pages_and_streams_are_for_async_for(service: Service) -> None:
    pages = [{"data": [{"id": name}], "has_more": name == "a", "next_cursor": name} for name in "ab"]
    lines = b'{"index": 0}\n{"complete": true}'
    service.answers = [(200, {}, pages[0]), (200, {}, pages[1]), (200, {}, lines)]

    async def work() -> Any:
        async with AsyncClient(service.url) as client:
            ids = [job["id"] async for job in client.jobs.iterate(limit=1)]
            return ids, [line async for line in client.scores.stream("x")]

    assert run(work()) == (["a", "b"], [{"index": 0}, {"complete": True}])
    assert [asked.path for asked in service.asked[:2]] == ["/v1/jobs?limit=1", "/v1/jobs?limit=1&after=a"]


def test_a_stream_left_early_gives_its_connection_back(service: Service) -> None:
    service.answers = [(200, {}, b'{"index": 0}\n{"index": 1}\n')]

    async def work() -> Any:
        async with AsyncClient(service.url) as client:
            async for line in client.scores.stream("x"):
                return line

    assert run(work()) == {"index": 0}


def test_errors_are_those_of_the_sync_client(service: Service) -> None:
    service.answers = [problem(404, "not_found", "no such job")]

    async def work(url: str) -> Any:
        async with AsyncClient(url) as client:
            await client.jobs.pause("job_0")

    with pytest.raises(KleashError, match="no such job"):
        run(work(service.url))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(KleashError) as error:
            run(work(f"http://127.0.0.1:{unused.getsockname()[1]}"))
    assert (error.value.code, error.value.retryable) == ("unreachable", True)
