"""Connections that an application can cut. ASGI has no word for it, and uvicorn's `close` waits for the peer."""

from collections.abc import MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ABORT = "kleash.abort"  # the name of the extension in an ASGI scope


class AbortableProtocol(HttpToolsProtocol):
    """Offers the application `scope["extensions"]["kleash.abort"]`, which drops the connection at once."""

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {ABORT: {"call": self.transport.abort}}


def abort(scope: MutableMapping[str, Any]) -> None:
    """Drop the request's connection, if the server can."""
    call = scope.get("extensions", {}).get(ABORT, {}).get("call")
    if call is not None:
        call()
