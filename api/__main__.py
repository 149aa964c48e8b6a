"""`python -m api`: the API on the host and port of the settings."""

import asyncio
import contextlib
import socket
import sys

import uvicorn

from api.abortable import AbortableProtocol
from jobs.settings import Settings

SETTLE_S = 0.3  # between the last new connection and the end of those without a request
STARTUP_FAILED = 3


class SettlingServer(uvicorn.Server):
    """Before it ends connections, those it has accepted may still send the request that they were opened for.

    uvicorn ends at once whatever has no request under way: a client that had just connected got no answer.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, then let the others settle, then as uvicorn does."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(SETTLE_S)
        await super().shutdown(sockets)


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    settings = Settings()
    config = uvicorn.Config(
        "api.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        http=AbortableProtocol,
        access_log=False,  # request_log writes one line per request
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = SettlingServer(config)
    with contextlib.suppress(KeyboardInterrupt):  # it has shut down in order and raises the signal again
        server.run()
    return 0 if server.started else STARTUP_FAILED


if __name__ == "__main__":
    sys.exit(main())
