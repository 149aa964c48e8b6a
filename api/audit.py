"""Writes down who changed what (jobs/audit.py): every POST, PUT, PATCH and DELETE of a known caller but scoring.

The row is committed after the change and before the answer: whoever was told of a change is in the log. A process
that dies between the two leaves a change in no row, and a client without an answer; the events of a job have it.
If the row cannot be written the answer is 503, and a repeat of the request is recorded. Requests without a valid
key or over the rate limit are not recorded: anybody could fill the log with them.
"""

import re
from typing import Any

import structlog
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import known_error
from jobs.audit import AuditEntry
from jobs.errors import StoreUnavailable
from jobs.store_audit import AuditStore

CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
CHANGES_NOTHING = "score"  # the scope of operations that only compute
NAME = re.compile(r"[A-Za-z0-9@._:/-]{1,200}")
ID = re.compile(r"([a-z]+_)?[0-9a-f]{8,32}")  # of ours; no secret has the form
log = structlog.get_logger("kleash.api")


class AuditTrail:
    """ASGI middleware, inside the request log: it needs the request id."""

    def __init__(self, app: ASGIApp, store: AuditStore) -> None:
        self.app, self._store = app, store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102  # ASGI
        if scope["type"] != "http" or scope["method"] not in CHANGING:
            await self.app(scope, receive, send)
            return
        started = replaced = False

        async def recording(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                try:
                    await self._record(scope, message["status"], Headers(raw=message["headers"]))
                except StoreUnavailable as error:
                    replaced = True
                    await known_error(Request(scope), error)(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self.app(scope, receive, recording)
        finally:
            if not started:  # an error nobody expected, which the request log answers
                await self._record_or_log(scope, 500)

    async def _record_or_log(self, scope: Scope, status: int) -> None:
        try:
            await self._record(scope, status, Headers())
        except StoreUnavailable:
            log.error("audit_row_lost", status=status)

    async def _record(self, scope: Scope, status: int, headers: Headers) -> None:
        state: dict[str, Any] = scope["state"]
        caller, route = state.get("caller"), scope.get("route")
        if caller is None or state.get("needed_scope") == CHANGES_NOTHING:
            return
        entry = AuditEntry(
            owner=caller.owner,
            key_id=caller.key_id,
            operation=getattr(route, "operation_id", None) or scope["method"],
            resource_id=_resource_id(scope, status, headers),
            status=status,
            client=scope["client"][0] if scope.get("client") else None,
            request_id=state["request_id"],
        )
        await run_sync(self._store.record_audit, entry)


def _resource_id(scope: Scope, status: int, headers: Headers) -> str | None:
    """Of what was made, by its Location; else the parameters of the path.

    Of a request that failed they are a client's text, which may be anything, also a key: only ids are kept.
    """
    if status < 300 and (made := headers.get("location", "").rpartition("/")[2]):
        return made
    named = [str(value) for value in scope.get("path_params", {}).values()]
    form = NAME if status < 400 else ID
    return "/".join(named) if named and all(form.fullmatch(name) for name in named) else None
