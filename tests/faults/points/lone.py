"""The points of programs that need no stack: each is killed at every passing of every point, then run again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jobs.keys import parse
from tests.faults.checker_rows import read_database

ROOT = Path(__file__).resolve().parents[3]
MOST_PASSINGS = 50
MIGRATE = ("commit.upgrade", "commit.create_key", "fsync.key", "link.key")
FILES = ("fsync", "rename", "rename.replaced", "remove")

PUBLISH_TWICE = """
import sys
from pathlib import Path
from jobs.files import LocalFiles

root, files = Path(sys.argv[1]), LocalFiles()
for version in ("1", "2"):
    partial = root / f"{version}.partial"
    files.remove_folder(partial)
    partial.mkdir(parents=True)
    for name in ("a", "b"):
        (partial / name).write_text(version)
    files.publish_folder(partial, root / "final")
"""


def points_of(stems: Sequence[str]) -> list[str]:
    """Both sides of each."""
    return [f"{stem}.{side}" for stem in stems for side in ("before", "after")]


def kill_files(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Problems of LocalFiles: at no moment a folder that is not whole, and the next run goes to its end."""
    for name in names:
        for n in range(1, MOST_PASSINGS):
            folder = root / f"{name}-{n}"
            code = run_command(
                [sys.executable, "-c", PUBLISH_TWICE, str(folder)], {"KLEASH_KILL_AT": f"{name}:{n}"}
            )
            label = f"{name}:{n}"
            if code == 0:
                if n == 1:
                    yield f"{label}: not reached"
                break
            yield from (f"{label}: {problem}" for problem in _not_whole(folder))
            code = run_command([sys.executable, "-c", PUBLISH_TWICE, str(folder)], {})
            left = sorted(path.name for path in folder.iterdir())
            if code != 0 or left != ["final"] or (folder / "final" / "a").read_text() != "2":
                yield f"{label}: the next run ended with {code} and left {left}"


def _not_whole(folder: Path) -> Iterator[str]:
    """What a reader may see: a whole version or none, and never none once there was one and nothing aside."""
    final, aside = folder / "final", folder / ".final.replaced"
    if final.exists():
        seen = {path.name: path.read_text() for path in final.iterdir()}
        if seen not in ({"a": "1", "b": "1"}, {"a": "2", "b": "2"}):
            yield f"final holds {seen}"
    elif aside.exists() and {path.read_text() for path in aside.iterdir()} != {"1"}:
        yield "neither final nor what was set aside is whole"


def kill_migrate(root: Path, names: Sequence[str]) -> Iterator[str]:
    """Problems of `jobs.migrate --first-key`: the next run makes the schema, and file and row of one key."""
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        url, key_file = f"sqlite:///{folder}/kleash.db", folder / "key"
        command = [sys.executable, "-m", "jobs.migrate", "--first-key", str(key_file)]
        env = {"KLEASH_DATABASE_URL": url}
        code = run_command(command, env | {"KLEASH_KILL_AT": f"{name}:1"})
        if code != -signal.SIGKILL:
            yield f"{name}: ended with {code} instead of dying"
        code = run_command(command, env)
        key = parse(key_file.read_text().strip()) if key_file.exists() else None
        if code != 0 or key is None:
            yield f"{name}: the next run ended with {code}, the key is {'bad' if key is None else 'good'}"
        elif read_database(url).open_transactions:
            yield f"{name}: a transaction is open"


def run_command(command: list[str], env: dict[str, str]) -> int:
    """The exit status of a command that prints nothing here; `env` are all its settings of ours."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("KLEASH_")}
    done = subprocess.run(
        command,
        env=outer | {"PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return done.returncode
