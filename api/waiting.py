"""Waiting for an answer as long as somebody waits for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

CLIENT_GONE = 499  # nginx's, for the log: nobody reads the answer


async def while_wanted(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """What `work` returns; if the client leaves first it is cancelled, and with it what it waits for."""
    answer, gone = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else Response(status_code=CLIENT_GONE)
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
