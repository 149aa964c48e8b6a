"""`kleash doctor`: what works, and what to do about what does not."""

import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from kleash.commands.options import Data, Json, Key, Url
from kleash.commands.session import FAILED, NO_ENTRY, OK, UNREACHABLE, print_json, refused

if TYPE_CHECKING:
    from kleash.client import Client

LEAST_FREE_BYTES = 2 << 30  # a checkpoint of a small model, and room to write the next
PARTS = {
    "database": "Is it running, and migrated (python -m jobs.migrate)? See KLEASH_DATABASE_URL.",
    "scorer": "Nothing is scored until it runs: python -m worker.scorer. See KLEASH_SCORER_URL.",
    "broker": "Jobs are taken and start when it is back. See KLEASH_BROKER_URL.",
}


class Finding(NamedTuple):
    """One line: what was looked at, whether it is well, what was found, and what to do if it is not."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    exit_code: int = OK


def doctor(data: Data = Path(".kleash"), url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Look whether everything works here; exit code 0 if it does."""
    from kleash.client import Client
    from kleash.errors import KleashError
    from kleash.render import visible

    worst = OK
    try:
        with Client(url, key, data=data, timeout_s=20) as client:
            for finding in examine(client, data):
                if as_json:
                    print_json(finding._asdict())
                else:
                    mark = "ok     " if finding.ok else "PROBLEM"
                    hint = finding.advice and f"  → {finding.advice}"
                    print(visible(f"{mark}  {finding.name:9}  {finding.found}{hint}"), flush=True)
                worst = worst or finding.exit_code
    except KleashError as error:
        refused(error, as_json)
    raise typer.Exit(worst)


def examine(client: "Client", data: Path) -> Iterator[Finding]:
    """Everything that can be seen from here; what needs the service only where it answers."""
    yield Finding("versions", True, f"kleash {own_version()}, Python {platform.python_version()}")
    yield disk(data)
    service = _looked("service", client, _service, "Start it with `kleash up`, or name it with --url.")
    yield service
    if not service.ok:
        return
    for part, state in client.ready()["checks"].items():
        yield _finding(part, state == "ok", state, PARTS.get(part, ""), UNREACHABLE)
    key = _looked("key", client, _key, "Give --key or KLEASH_KEY; an operator makes one: kleash keys create.")
    yield key
    if key.ok:
        yield _looked("models", client, _models, "Is KLEASH_MODELS_FILE the right one?")
        yield _looked(
            "workers", client, _workers, "Jobs wait until a worker runs: python -m celery, or kleash up."
        )


def disk(data: Path) -> Finding:
    """Room for checkpoints where everything is kept on this machine."""
    folder = data.expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    enough = free >= LEAST_FREE_BYTES
    return _finding(
        "disk", enough, f"{free / 2**30:.1f} GiB free at {folder}", "Make room, or choose another --data."
    )


def _looked(
    name: str, client: "Client", look: Callable[["Client"], tuple[bool, str]], advice: str
) -> Finding:
    """What `look` finds; an error is a problem as well."""
    from kleash.errors import KleashError

    try:
        well, found = look(client)
    except KleashError as error:
        if error.status == 403:  # the key is for something else
            return Finding(name, True, f"not looked at: {error.detail}")
        code = NO_ENTRY if error.status == 401 else UNREACHABLE
        return _finding(name, False, str(error), advice, code)
    return _finding(name, well, found, advice)


def _finding(name: str, ok: bool, found: str, advice: str, code: int = FAILED) -> Finding:
    """Advice and an exit code are for what is not well."""
    return Finding(name, ok, found) if ok else Finding(name, ok, found, advice, code)


def _service(client: "Client") -> tuple[bool, str]:
    answer = client.version()
    return answer["name"] == "kleash", f"{answer['name']} {answer['version']} at {client.base_url}"


def _key(client: "Client") -> tuple[bool, str]:
    caller = client.whoami()
    until = caller["key"]["expires_at"] if caller["key"] else None
    kind = "a key" if caller["key"] else "no key needed"
    return True, f"{kind}, owner {caller['owner']}, may {' '.join(caller['scopes'])}" + (
        f", until {until}" if until else ""
    )


def _models(client: "Client") -> tuple[bool, str]:
    models = client.models.list()["data"]
    failed = [model["id"] for model in models if model["state"] == "failed"]
    names = ", ".join(model["id"] for model in models) or "none"
    return bool(models) and not failed, names + (f"; cannot be loaded: {', '.join(failed)}" if failed else "")


def _workers(client: "Client") -> tuple[bool, str]:
    workers = client.workers()["data"]
    alive = [worker for worker in workers if worker["state"] != "stale"]
    return bool(alive), f"{len(alive)} alive" + (
        f", {len(workers) - len(alive)} stale" if len(alive) < len(workers) else ""
    )


def own_version() -> str:
    """The release that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kleash")
    except PackageNotFoundError:
        return "not installed (a source checkout)"
