"""What browsers must know of every answer: that it is no page to frame, sniff or run, and who may read it."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.settings import Settings

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # a page of ours sets its own
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
WIRE = [(name.lower().encode(), value.encode()) for name, value in SECURITY.items()]
REQUEST_HEADERS = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "Traceparent",
    "X-Request-Id",
]
ANSWER_HEADERS = [
    "API-Version",
    "Content-Range",
    "ETag",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "Server-Timing",
    "X-Request-Id",
]


class SecurityHeaders:
    """ASGI middleware: adds SECURITY to every answer that does not say otherwise itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                said = {name for name, _ in headers}
                message["headers"] = [*headers, *(pair for pair in WIRE if pair[0] not in said)]
            await send(message)

        await self.app(scope, receive, secured if scope["type"] == "http" else send)


def install(app: FastAPI, settings: Settings) -> None:
    """Answer pages of the listed origins (none by default), and secure all else; outermost of the middleware."""
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
        )
    app.add_middleware(SecurityHeaders)
