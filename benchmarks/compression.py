"""What gzip costs and gives on loopback, of a megabyte of scores: `python -m benchmarks.compression`."""

import asyncio
import socket
import statistics
import sys
import threading
import time
from typing import Any

import httpx2
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.compression import Compression
from api.json_response import json_response

TOKENS, TIMES = 200, 40


def scores(items: int) -> dict[str, Any]:
    """As /v1/scores answers, with random numbers, which compress worst."""
    draw = np.random.default_rng(0)
    columns = [
        {
            "ids": draw.integers(0, 50_000, TOKENS),
            "text": [f" tok{word}" for word in draw.integers(0, 2000, TOKENS)],
            "start": np.arange(TOKENS) * 5,
            "end": np.arange(TOKENS) * 5 + 5,
            "scored": [True] * TOKENS,
            "kl": (draw.random(TOKENS) ** 3).astype(np.float32),
            "policy_logprob": -(draw.random(TOKENS) * 8).astype(np.float32),
            "reference_logprob": -(draw.random(TOKENS) * 8).astype(np.float32),
        }
        for _ in range(items)
    ]
    return {"data": [{"object": "score", "index": i, "tokens": each} for i, each in enumerate(columns)]}


def main() -> int:
    """Print bytes and the median of each way, taken in turns."""
    document = scores(56)

    async def answer(_request: Request) -> Response:
        return json_response(document)

    app = Compression(Starlette(routes=[Route("/v1/scores", answer)]))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/scores"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        with httpx2.Client(trust_env=False) as client:
            took: dict[str, list[float]] = {"identity": [], "gzip": []}
            size = dict.fromkeys(took, 0)
            for _ in range(TIMES):
                for coding, times in took.items():
                    began = time.perf_counter()
                    got = client.get(url, headers={"Accept-Encoding": coding})
                    times.append(time.perf_counter() - began)
                    size[coding] = int(got.headers["Content-Length"])
        server.should_exit = True
        thread.join()
    for coding, times in took.items():
        print(f"{coding:9} {size[coding]:9,} bytes  {1000 * statistics.median(times):6.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
