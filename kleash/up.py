"""The whole stack on one machine, in the foreground: Valkey, SQLite, scorer, worker, API.

Spawns the stack's modules and imports none of them. Any death ends all; nothing outlives this process,
whatever kills it (`jobs.lifeline`), and the lock on the data folder is held until the last of them has gone.
"""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kleash.claims import UpError, free_port, locked, socket_folder, valkey_server
from kleash.render import visible
from kleash.service_address import LOOPBACK
from kleash.spawn import spawn

TICK_S = 0.5
COLOURS = {"valkey": 35, "migrate": 33, "scorer": 36, "worker": 32, "api": 34}
VALKEY = "--port 0 --unixsocketperm 700 --appendonly yes --maxmemory-policy noeviction --loglevel warning"
CELERY = "-A worker.app worker --pool prefork -c 1 -Q cpu,gpu.any --without-gossip --without-mingle -l INFO"
REWARD_SECRET = ("KLEASH_REWARD_SECRET", "KLEASH_REWARD_SECRET_FILE")  # for the worker, which signs, alone
QUIET = {  # idle processes sleep instead of spinning
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",  # some microseconds: between two layers, not between two requests
    "KMP_BLOCKTIME": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


class Options(NamedTuple):
    """What `kleash up` was asked for. Port 0 means any free one."""

    host: str
    port: int
    data: Path
    models: Path | None = None
    unsafe_no_auth: bool = False
    json: bool = False


class Child:
    """One process of the stack: its log lines go out with its name, the last ones are remembered."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], lock: int) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=15)
        if name != "worker":
            env = {key: value for key, value in env.items() if key not in REWARD_SECRET}
        self.process = spawn(command, stderr=subprocess.STDOUT, env=env, pass_fds=(lock,))
        self._pump = threading.Thread(target=self._copy_log, daemon=True)
        self._pump.start()

    def _copy_log(self) -> None:
        label = f"{self.name:>7} │ "
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            label = f"\x1b[{COLOURS[self.name]}m{label}\x1b[0m"
        assert self.process.stdout is not None
        for line in self.process.stdout:
            text = visible(line.rstrip("\n"))
            self.tail.append(text)
            sys.stderr.write(f"{label}{text}\n")

    def obituary(self) -> str:
        """How it ended, with its last lines."""
        self._pump.join(timeout=1)
        lines = "".join(f"\n    {line}" for line in self.tail)
        return f"{self.name} ended with exit code {self.process.returncode}. Its last lines:{lines}"

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for it and for what it left of its session."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._pump.join(timeout=1)


def run(options: Options) -> None:
    """Start everything, say when it is ready, stay until Ctrl-C or SIGTERM. Raises UpError."""
    data, children = options.data.expanduser().absolute(), list[Child]()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if options.unsafe_no_auth and options.host not in LOOPBACK:
        raise UpError(f"--unsafe-no-auth is refused off loopback, and {options.host} is not loopback.")
    if "?" in str(data):
        raise UpError(
            f"The data folder {data} cannot be used: a database URL has no place for a question mark."
        )
    port = free_port(options.host, options.port)
    url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{port}"
    with locked(data) as lock, socket_folder(data, url) as sockets:
        env = _environment(options, data, port, sockets)
        try:
            _start(children, env, lock, sockets)
            _hold(children, until=lambda: _answers_ready(options.host, port))
            _say_ready(options, url, data)
            _hold(children)
        except KeyboardInterrupt:
            sys.stderr.write("\nStopping.\n")
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            for child in reversed(children):
                child.stop(grace_s=12 if child.name == "worker" else 6)


def _start(children: list[Child], env: Mapping[str, str], lock: int, sockets: Path) -> None:
    """Valkey, then the schema and the first key, then the three services; all but `migrate` stay."""
    python, data = sys.executable, Path(env["KLEASH_DATA"])
    (data / "valkey").mkdir(mode=0o700, exist_ok=True)
    files = ["--dir", str(data / "valkey"), "--unixsocket", f"{sockets}/valkey.sock", "--save", ""]
    children.append(Child("valkey", [valkey_server(), *VALKEY.split(), *files], env, lock))

    first_key = [python, "-m", "jobs.migrate", "--first-key", str(data / "key")]
    migrate = Child("migrate", first_key, env, lock)
    children.append(migrate)
    _hold(children[:-1], until=lambda: migrate.process.poll() is not None)
    children.remove(migrate)
    if migrate.process.returncode:
        raise UpError(migrate.obituary())

    children.append(Child("scorer", [python, "-m", "worker.scorer"], env, lock))
    children.append(Child("worker", [python, "-m", "celery", *CELERY.split()], env, lock))
    children.append(Child("api", [python, "-m", "api"], env, lock))


def _hold(children: Sequence[Child], until: Callable[[], bool] = lambda: False) -> None:
    """Return once `until` holds; any child's death before that is an UpError."""
    while not until():
        for child in children:
            if child.process.poll() is not None:
                raise UpError(child.obituary())
        time.sleep(TICK_S)


def _environment(options: Options, data: Path, port: int, sockets: Path) -> dict[str, str]:
    """What the children see: our own environment with the embedded stack's addresses."""
    env = {**os.environ, **QUIET}
    env |= {
        "KLEASH_DATABASE_URL": f"sqlite:///{data}/kleash.db",
        "KLEASH_BROKER_URL": f"redis+socket://{sockets}/valkey.sock",
        "KLEASH_SCORER_URL": f"unix:{sockets}/scorer.sock",
        "KLEASH_DATA": str(data),
        "KLEASH_HOST": options.host,
        "KLEASH_PORT": str(port),
        "KLEASH_UNSAFE_NO_AUTH": str(options.unsafe_no_auth).lower(),
        "KLEASH_STOP_GRACE_S": "8",
        "PYTHONUNBUFFERED": "1",
        "REMAP_SIGTERM": "SIGQUIT",  # Celery hands a running job back instead of waiting for its end
    }
    if options.models is not None:
        if not options.models.is_file():
            raise UpError(f"There is no model registry at {options.models}.")
        env["KLEASH_MODELS_FILE"] = str(options.models.absolute())
    return env


def _answers_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _say_ready(options: Options, url: str, data: Path) -> None:
    key = None if options.unsafe_no_auth else str(data / "key")
    if options.json:
        print(json.dumps({"url": url, "key_file": key, "data": str(data)}), flush=True)
        return
    way_in = f"The key lies in {key}." if key else "Open to this machine without a key."
    print(f"\nkleash is ready at {url} (data in {data}). {way_in} Ctrl-C stops it.\n", flush=True)
