"""SIGTERM while polls are held and streams are open: all are answered, and the process ends in order."""

import asyncio
import json
import signal
import socket
from pathlib import Path
from typing import Any

import httpx2

from jobs.settings import Settings
from jobs.spec import NewEvent
from jobs.sql_store import SqlStore
from tests.api.acting import claimed
from tests.api.live_client import Connection
from tests.api.serving import serving

OF_EACH = 20


def test_who_waits_is_answered_and_streams_end_before_the_process_does(
    settings: Settings, store: SqlStore, tmp_path: Path, spec: dict[str, Any]
) -> None:
    with serving(settings, tmp_path) as (url, log, process):
        job_id = httpx2.post(f"{url}/v1/jobs", json=spec, trust_env=False, timeout=60).json()["id"]
        attempt = claimed(store, job_id).attempt
        for _ in range(40):
            store.add_event(job_id, attempt, NewEvent(type="note", message="x" * 200_000))
        path, port = f"/v1/jobs/{job_id}", int(url.rpartition(":")[2])
        deaf = socket.socket()  # it never reads
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        deaf.sendall(f"GET {path}/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

        async def terminate() -> None:
            polls = [await Connection.to(port) for _ in range(OF_EACH)]
            streams = [await Connection.to(port) for _ in range(OF_EACH)]
            etag = (await polls[0].get(path)).headers["etag"]
            for poll, stream in zip(polls, streams, strict=True):
                poll.ask(path, If_None_Match=etag, Prefer="wait=50")
                stream.ask(f"{path}/events/stream?after=42")
                await stream.head()
            frames = [stream.frames() for stream in streams]
            for each in frames:
                assert (await anext(each))["event"] == "snapshot"
            feeds = [await Connection.to(port) for _ in range(OF_EACH)]
            for feed in feeds:
                feed.ask("/v1/events/stream")
                await feed.head()
            all_jobs = [feed.frames() for feed in feeds]
            for each in all_jobs:
                assert (await anext(each))["event"] == "ready"
            frames += all_jobs
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            sent = asyncio.get_running_loop().time()
            answers = await asyncio.gather(*(poll.answer() for poll in polls))
            for each in frames:
                assert [frame async for frame in each] == []  # it ended as a whole body does
            assert asyncio.get_running_loop().time() - sent < 40  # of the 50 s that they would wait
            assert {(answer.status, answer.headers["etag"]) for answer in answers} == {(304, etag)}

        asyncio.run(terminate())
        assert process.wait(30) == -signal.SIGTERM
        deaf.close()
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert {line["level"] for line in lines} <= {
            "info",
            "warning",
        }  # nobody was cut off after uvicorn's 5 s
