"""Named fault points: the places where a process can be made to die, so that each can be tried.

`KLEASH_KILL_AT=name:n` ends a process with SIGKILL at its n-th passing of `point(name)`; several names are
separated by commas. With `KLEASH_KILL_ONCE=FOLDER` each name kills one process of the whole stack: who dies leaves
the file FOLDER/name first, and while it is there nobody else dies of that name. Unset, a point is one comparison.

`python -m jobs.faults` lists the names, read from the sources: every `point("…")`, and `commit.METHOD.before` and
`.after` for every method that opens a transaction with `writing()`.
"""

import ast
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

ROOMS = ("api", "jobs", "worker", "rlhf_core")
ROOT = Path(__file__).resolve().parent.parent


def parse(value: str) -> dict[str, int]:
    """`name:n,name:n` as a mapping. Raises ValueError."""
    pairs = (item.rpartition(":") for item in value.split(",") if item)
    return {name: int(n) for name, _, n in pairs}


_armed: Mapping[str, int] = parse(os.environ.get("KLEASH_KILL_AT", ""))
_once = os.environ.get("KLEASH_KILL_ONCE")
_passed: Counter[str] = Counter()
_lock = threading.Lock()


def point(name: str) -> None:
    """Die here if KLEASH_KILL_AT says so."""
    if _armed:
        _pass(name)


def _pass(name: str) -> None:
    if name not in _armed:
        return
    with _lock:
        _passed[name] += 1
        if _passed[name] != _armed[name]:
            return
    if _once is not None:
        try:
            mark = os.open(Path(_once, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return
        os.write(mark, f"{os.getpid()} {' '.join(sys.argv)}\n".encode())
        os.close(mark)
    os.kill(os.getpid(), signal.SIGKILL)


def names() -> list[str]:
    """Every point of the sources."""
    files = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return sorted({name for path in files for name in names_in(path.read_text(encoding="utf-8"))})


def names_in(source: str) -> Iterator[str]:
    """The points of one source."""
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            match node.func, node.args:
                case ast.Attribute(attr="writing"), []:
                    yield from (f"commit.{function.name.strip('_')}.{side}" for side in ("before", "after"))
                case ast.Name(id="point"), [ast.Constant(value=str() as name)]:
                    yield name


def main() -> None:
    """Print the names, one a line."""
    with suppress(BrokenPipeError):
        sys.stdout.write("".join(f"{name}\n" for name in names()))


if __name__ == "__main__":
    main()
