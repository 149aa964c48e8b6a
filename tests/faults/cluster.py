"""The stack as separate processes that may die one by one: a keeper starts again what was killed.

`kleash up` ends when any of its processes does; production restarts them. This is that production on one machine:
real API replicas, real Celery workers, Valkey (with or without its append-only file), SQLite or a real PostgreSQL.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import redis

from kleash.claims import free_port, valkey_server
from kleash.up import CELERY, QUIET
from tests.faults.processes import descendants, gone, training_job

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
KEEPER_TICK_S = 0.1
LEASE_S = 3.0
SETTINGS = {
    "KLEASH_HOST": "127.0.0.1",
    "KLEASH_UNSAFE_NO_AUTH": "true",
    "KLEASH_SCORER_URL": "unix:/nonexistent/scorer.sock",
    "KLEASH_LEASE_S": str(LEASE_S),
    "KLEASH_HEARTBEAT_S": "0.5",
    "KLEASH_DISPATCH_EVERY_S": "0.5",
    "KLEASH_RESEND_AFTER_S": "2",
    "KLEASH_REAP_EVERY_S": "0.5",
    "KLEASH_STOP_GRACE_S": "8",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    "REMAP_SIGTERM": "SIGQUIT",
}


def until(holds: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Poll until it holds. Raises TimeoutError."""
    give_up_at = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"waited {patience_s:g} s in vain: {what}")
        time.sleep(0.05)


class Part(Protocol):
    """One member of the cluster."""

    name: str
    wanted: bool  # the keeper starts it again if it has died

    def start(self) -> None: ...
    def alive(self) -> bool: ...
    def kill(self) -> None: ...
    def pid(self) -> int: ...


class Service:
    """One of our own processes; it dies with this one."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self.name, self.wanted, self.env = name, False, dict(env)
        self._command, self._log, self._cwd = list(command), log, cwd
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs.lifeline", "--", *self._command],
                env=self.env,
                cwd=self._cwd or ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL for it and all that descends from it, stopped or not."""
        if self.process is None:
            return
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


class Postgres:
    """A real server of the wheel, with one database per cluster."""

    name = "postgresql"

    def __init__(self) -> None:
        from tests.postgres import start_server

        self.wanted = True
        # A short path: the server's socket lies in it, and unix sockets have 108 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True)
        self.server = start_server(Path(self._folder.name, "data"))
        self._run("ALTER SYSTEM SET fsync = off")
        self._run("SELECT pg_reload_conf()")

    def _run(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def new_database(self, name: str) -> str:
        """Its URL."""
        self._run(f"CREATE DATABASE {name}")
        url: str = self.server.get_uri().replace("/postgres?", f"/{name}?")
        return url

    def start(self) -> None:
        self.server.ensure_postgres_running()

    def alive(self) -> bool:
        return not gone(self.pid())

    def pid(self) -> int:
        pid: int = self.server.get_pid()
        return pid

    def kill(self) -> None:
        """Immediate shutdown: no checkpoint is written, the next start recovers from the log."""
        pid = self.pid()
        os.kill(pid, signal.SIGQUIT)
        until(lambda: gone(pid), "PostgreSQL's immediate shutdown")

    def close(self) -> None:
        """Stop it and remove its data."""
        self.server.cleanup()
        self._folder.cleanup()


class Cluster:
    """All parts of one deployment below `folder`."""

    def __init__(
        self,
        folder: Path,
        registry: Path,
        *,
        postgres: Postgres | None = None,
        apis: int = 1,
        workers: int = 1,
        append_only: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.data, self.postgres = folder / "data", postgres
        self.data.mkdir(parents=True)
        self._sockets = tempfile.TemporaryDirectory(prefix="kc", dir="/tmp", ignore_cleanup_errors=True)
        self.socket = Path(self._sockets.name, "v.sock")
        self.url = f"sqlite:///{self.data}/kleash.db"
        if postgres is not None:
            self.url = postgres.new_database(f"chaos_{time.monotonic_ns()}")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("KLEASH_")} | QUIET | SETTINGS
        self.env |= {
            "KLEASH_DATABASE_URL": self.url,
            "KLEASH_BROKER_URL": f"redis+socket://{self.socket}",
            "KLEASH_DATA": str(self.data),
            "KLEASH_MODELS_FILE": str(registry),
        }
        self.env |= env or {}
        self.valkey = self._valkey(append_only)
        self.ports = [free_port("127.0.0.1", 0) for _ in range(apis)]
        self.apis = [self._service(f"api{i}", ["-m", "api"], port) for i, port in enumerate(self.ports)]
        self.workers = [self._worker(i) for i in range(workers)]
        self.parts: list[Part] = [*([postgres] if postgres else []), self.valkey, *self.apis, *self.workers]
        self._keeper_stop = threading.Event()
        self._held = threading.Lock()
        self.start_after: dict[str, float] = {}  # part → monotonic time before which it stays down
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    @property
    def artifacts(self) -> Path:
        return self.data / "jobs"

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def _service(self, name: str, arguments: Sequence[str], port: int = 0) -> Service:
        env = self.env | ({"KLEASH_PORT": str(port)} if port else {})
        return Service(name, [sys.executable, *arguments], env, self.data.parent / f"{name}.log")

    def _worker(self, index: int) -> Service:
        name = f"worker{index}"
        return self._service(name, ["-m", "celery", *CELERY.split(), "-n", f"{name}@%h"])

    def _valkey(self, append_only: bool) -> Service:
        home = self.data / "valkey"
        home.mkdir()
        command = [valkey_server(), "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        command += ["--appendonly", "yes" if append_only else "no", "--loglevel", "warning"]
        return Service("valkey", command, self.env, self.data.parent / "valkey.log", cwd=home)

    def migrate(self) -> int:
        """Create the schema; the exit code."""
        migrate = self._service("migrate", ["-m", "jobs.migrate", "--first-key", str(self.data / "key")])
        migrate.start()
        assert migrate.process is not None
        return migrate.process.wait(PATIENCE_S)

    def start(self, *, but: Sequence[Part] = ()) -> None:
        """Schema and all parts; returns when every API answers. From now on the keeper is at work."""
        if self.migrate() != 0:
            raise RuntimeError((self.data.parent / "migrate.log").read_text())
        for part in self.parts:
            if part not in but:
                if not part.alive():
                    part.start()
                part.wanted = True
        self._keeper.start()
        for url in self.urls:
            until(lambda url=url: answers(url), f"{url} answers")  # type: ignore[misc]

    def _keep(self) -> None:
        while not self._keeper_stop.wait(KEEPER_TICK_S):
            with self._held:
                for part in self.parts:
                    if (
                        part.wanted
                        and not part.alive()
                        and time.monotonic() >= self.start_after.get(part.name, 0)
                    ):
                        part.start()

    def whole(self) -> bool:
        """Every part is alive, the broker and every API answer."""
        if not all(part.alive() for part in self.parts if part.wanted):
            return False
        return self.broker_answers() and all(answers(url) for url in self.urls)

    def broker_answers(self) -> bool:
        with contextlib.suppress(redis.RedisError), self.broker() as client:
            return bool(client.ping())
        return False

    def broker(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=1)

    def training(self) -> dict[int, str]:
        """Training children and their jobs."""
        pids = [pid for worker in self.workers if worker.process for pid in descendants(worker.process.pid)]
        return {pid: job for pid in pids if (job := training_job(pid)) is not None}

    def close(self) -> None:
        """End everything but the PostgreSQL server."""
        self._keeper_stop.set()
        if self._keeper.is_alive():
            self._keeper.join()
        for part in reversed(self.parts):
            if part is not self.postgres:
                part.wanted = False
                part.kill()
        self._sockets.cleanup()

    @contextlib.contextmanager
    def running(self, *, but: Sequence[Part] = ()) -> Iterator["Cluster"]:
        """From start to close."""
        try:
            self.start(but=but)
            yield self
        finally:
            self.close()


def answers(url: str) -> bool:
    """True if the API at this address is up."""
    import httpx2

    try:
        return httpx2.get(f"{url}/health", timeout=2, trust_env=False).is_success
    except httpx2.TransportError:
        return False
