"""`python -m api`: the API on the host and port of the settings."""

import asyncio
import contextlib
import resource
import socket
import sys
from functools import partial
from typing import Any

import uvicorn

from api.connections import Census, LimitedConnection
from jobs.settings import Settings, settings_or_exit

SETTLE_S = 0.3  # between the last new connection and the end of those without a request
STARTUP_FAILED = 3
FILES_BESIDE = 512  # connections: to the database, the broker and the scorer, and what answers read


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


def allow_files(most: int) -> None:
    """Let this process have so many open, as far as the system's hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def server_config(application: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """uvicorn around an application, with our limits on connections."""
    return uvicorn.Config(
        application,
        http=partial(LimitedConnection, census=Census(settings)),  # type: ignore[arg-type]  # called, no more
        ws="none",
        access_log=False,  # request_log writes one line per request
        log_config=None,
        server_header=False,
        **options,
    )


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    settings = settings_or_exit()
    allow_files(settings.max_connections + FILES_BESIDE)
    config = server_config(
        "api.app:create_app",
        settings,
        factory=True,
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=5,
    )
    server = SettlingServer(config)
    with contextlib.suppress(KeyboardInterrupt):  # it has shut down in order and raises the signal again
        server.run()
    return 0 if server.started else STARTUP_FAILED


if __name__ == "__main__":
    sys.exit(main())
