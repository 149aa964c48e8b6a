"""Refuses bodies over the limit, by their declared length or while they arrive.

Starlette's own limiter answers in plain text; clients of this API read problems.
"""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import RequestTooLarge
from api.problems import http_error


class BodyLimit:
    """ASGI middleware: at most `max_bytes` of body per request; `larger` has others by (method, path)."""

    def __init__(
        self, app: ASGIApp, max_bytes: int, larger: Mapping[tuple[str, str], int] | None = None
    ) -> None:
        self.app, self.max_bytes, self.larger = app, max_bytes, larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        max_bytes = self.larger.get((scope["method"], scope["path"]), self.max_bytes)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > max_bytes:
            await http_error(request, RequestTooLarge(max_bytes))(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise RequestTooLarge(max_bytes)
            return message

        await self.app(scope, limited, send)
