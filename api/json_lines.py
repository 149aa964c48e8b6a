"""A response of JSON lines that are written as they come."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class JsonLines(StreamingResponse):
    """The first line, which is there, and the others; when the client leaves, what they wait for is given up."""

    media_type = "application/jsonl"

    def __init__(self, first: bytes, others: AsyncGenerator[bytes, None]) -> None:
        super().__init__(_all(first, others))
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        async with aclosing(self._others):
            await super().__call__(scope, receive, send)


async def _all(first: bytes, others: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    yield first
    async for line in others:
        yield line
