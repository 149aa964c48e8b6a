"""gzip for the documents that are large: scores, metrics, and the OpenAPI document.

Not for streams, which must not be held back, nor for files, whose ranges and digests are those of their bytes.
None of the documents has a secret beside what the caller sent, so their lengths tell nobody anything (BREACH), and
no browser adds a caller's key by itself.
"""

import re
import zlib

from anyio.to_thread import run_sync
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = re.compile(r"/v1/scores|/v1/jobs/[^/]+/metrics|/openapi\.json")
LEAST_BYTES = 1024
LEVEL = 1  # of numbers, level 6 makes a tenth less in six times the time
GZIP = 16 + zlib.MAX_WBITS  # zlib's way to say gzip
NEVER = re.compile(r"q=0(\.0{0,3})?")


class Compression:
    """ASGI middleware: compresses JSON documents of PATHS that are sent in one piece."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        if scope["type"] != "http" or not PATHS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        wanted = takes_gzip(Headers(scope=scope).get("accept-encoding", ""))
        start: Message | None = None

        async def compressing(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message  # its headers depend on the body
                return
            if start is not None:
                head, start = start, None
                message = await _compressed(head, message, wanted=wanted)
                await send(head)
            await send(message)

        await self.app(scope, receive, compressing)


async def _compressed(head: Message, message: Message, *, wanted: bool) -> Message:
    """The body to send; `head` is changed to fit it."""
    headers, body = MutableHeaders(raw=head["headers"]), message.get("body", b"")
    if headers.get("content-type") != "application/json" or message.get("more_body", False):
        return message
    headers.add_vary_header("Accept-Encoding")
    if not wanted or head["status"] != 200 or len(body) < LEAST_BYTES:
        return message
    body = await run_sync(zlib.compress, body, LEVEL, GZIP)
    headers["Content-Encoding"], headers["Content-Length"] = "gzip", str(len(body))
    tag = headers.get("etag")
    if tag is not None and not tag.startswith("W/"):
        headers["ETag"] = f"W/{tag}"  # a strong one is of the bytes
    return {**message, "body": body}


def takes_gzip(accept_encoding: str) -> bool:
    """True if the header (RFC 9110 §12.5.3) names gzip, and not to refuse it."""
    for coding in accept_encoding.split(","):
        name, _, weight = coding.partition(";")
        if name.strip().lower() == "gzip":
            return NEVER.fullmatch(weight.strip().lower()) is None
    return False
