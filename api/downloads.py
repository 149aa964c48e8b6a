"""Files over HTTP (RFC 9110 §13 and §14): a tag that is their content's, 304, one range, and never wrong bytes.

Starlette's FileResponse makes its tag of the file's time and ignores If-None-Match.
"""

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.entity_tags import matches
from api.problems import problem

READ_BYTES = 1 << 20
RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
PLAIN_NAME = re.compile(r"[A-Za-z0-9._@-]+")


class Part(NamedTuple):
    """Some consecutive bytes of a download: `opened` is called when they are sent."""

    size: int
    opened: Callable[[], BinaryIO]


def bytes_part(content: bytes) -> Part:
    """Bytes that are there already."""
    return Part(len(content), lambda: io.BytesIO(content))


@dataclass(frozen=True)
class Download:
    """What is sent: `tag` names the content, `sha256` is its digest if known. `held` is closed at the end."""

    name: str
    media_type: str
    tag: str
    parts: Sequence[Part]
    sha256: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    held: ExitStack = field(default_factory=ExitStack)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(part.size for part in self.parts)


class Sent(StreamingResponse):
    """A response that lets go of the files it has."""

    def __init__(
        self, download: Download, first: int, size: int, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(content(download.parts, first, size), status, headers, download.media_type)
        self._held = download.held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        with self._held:
            await super().__call__(scope, receive, send)


def answer(request: Request, download: Download) -> Response:
    """200, 206 of one range, 304 or 416; to HEAD without the content.

    Of several ranges none is served but the whole (§14.2 allows it): they cost more than they are worth.
    """
    etag, size = f'"{download.tag}"', download.size
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        **download.headers,
    }
    if download.sha256 is not None:
        digest = base64.b64encode(bytes.fromhex(download.sha256)).decode()
        headers["Repr-Digest"] = f"sha-256=:{digest}:"
    given = request.headers
    if (known := given.get("if-none-match")) is not None and matches(known, etag):
        download.held.close()
        return Response(status_code=304, headers=headers)
    name = download.name if PLAIN_NAME.fullmatch(download.name) else "download"
    headers["Content-Disposition"] = f'attachment; filename="{name}"'
    first, length, status = 0, size, 200
    if request.method == "GET" and "range" in given and given.get("if-range", etag) == etag:
        wanted = requested(given["range"], size)
        if wanted is not None and not wanted:
            download.held.close()
            refused = {"Content-Range": f"bytes */{size}"}
            detail = "the range begins after the end"
            return problem(request.scope, 416, "range_not_satisfiable", detail, headers=refused)
        if wanted is not None:
            first, length, status = wanted.start, len(wanted), 206
            headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{size}"
    headers["Content-Length"] = str(length)
    if request.method == "HEAD":
        download.held.close()
        return Response(status_code=status, headers=headers, media_type=download.media_type)
    return Sent(download, first, length, status, headers)


def requested(header: str, size: int) -> range | None:
    """The bytes of a Range header with one range; empty if there are none there; None: it is to be ignored."""
    match = RANGE.fullmatch(header)
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return range(max(0, size - int(match[2])), size)
    first, last = int(match[1]), int(match[2] or size)
    if match[2] and last < first:
        return None
    return range(first, min(last + 1, size)) if first < size else range(0)


def content(parts: Sequence[Part], first: int, size: int) -> Iterator[bytes]:
    """`size` bytes of the parts' sequence from `first` on. Raises OSError where a file has fewer than it had."""
    for part in parts:
        skipped, first = min(first, part.size), max(0, first - part.size)
        left = min(part.size - skipped, size)
        if left <= 0:
            continue
        size -= left
        with part.opened() as file:
            file.seek(skipped)
            while left:
                chunk = file.read(min(left, READ_BYTES))
                if not chunk:
                    raise OSError("a file was cut while it was sent")
                left -= len(chunk)
                yield chunk
