"""An image's Dockerfile as a folder: its Python packages and its files alone, as links to ours.

What the Dockerfile does not install or copy cannot be imported there.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


class Room(NamedTuple):
    """What a container of the image would start with."""

    app: Path
    env: dict[str, str]
    command: list[str]


def room(dockerfile: Path, folder: Path) -> Room:
    """Link what the image holds into `folder`; its command and environment are the image's."""
    text = dockerfile.read_text().replace("\\\n", " ")
    venv.create(folder / "venv", symlinks=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    for installed in _installed(text):
        _link_distribution(installed, site, folder / "venv" / "bin")
    final = text[text.rindex("\nFROM ") :]
    for line in re.findall(r"^COPY (?!--from)(.*)$", final, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            inside = target + Path(source).name if target.endswith("/") else target
            _link(folder / "app" / inside, ROOT / source)
    env = dict(
        item.split("=", 1)
        for line in re.findall(r"^ENV (.*)$", final, re.MULTILINE)
        for item in shlex.split(line)
    )
    env["PATH"] = (
        env["PATH"].replace("/venv/bin", str(folder / "venv" / "bin")).replace("$PATH", "/usr/bin:/bin")
    )
    for name, run in re.findall(r"^RUN (KLEASH_\w+)=\S+ python (.*)$", text, re.MULTILINE):
        env[name] = str(folder / name.lower())  # what the build stage makes for the final one
        subprocess.run([sys.executable, *run.split()], env=os.environ | env, cwd=ROOT, check=True)
    (command,) = re.findall(r"^CMD \[(.*)\]$", final, re.MULTILINE)
    return Room(folder / "app", env, [word.strip(' "') for word in command.split(",")])


def _installed(dockerfile: str) -> Iterator[Distribution]:
    """What its pip commands bring: a lock as it stands, anything else with all that it needs."""
    for command in re.findall(r"pip install (.*?)(?=&&|\n)", dockerfile):
        lock = re.search(r"-r /tmp/(\S+\.lock)", command)
        if lock is None:
            for pinned in re.findall(r"\S+==\S+", command):
                yield from _closure(Requirement(pinned), set())
            continue
        for line in (ROOT / "locks" / lock[1]).read_text().splitlines():
            if re.match(r"[\w.-]+==", line):
                needed = Requirement(line.removesuffix("\\"))
                if needed.marker is None or needed.marker.evaluate():
                    yield distribution(needed.name)


def _closure(needed: Requirement, seen: set[str]) -> Iterator[Distribution]:
    if needed.name in seen or not (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        return
    seen.add(needed.name)
    found = distribution(needed.name)
    yield found
    for line in found.requires or ():
        yield from _closure(Requirement(line), seen)


def _link_distribution(installed: Distribution, site: Path, scripts: Path) -> None:
    here = Path(sysconfig.get_path("purelib"))
    record = installed.read_text("RECORD") or ""
    tops = {re.split("[/,]", line, maxsplit=1)[0] for line in record.splitlines()}
    for top in tops - {"..", "__pycache__"}:
        _link(site / top, here / top)
    for script in installed.entry_points.select(group="console_scripts"):
        path = scripts / script.name
        path.write_text(
            f"#!{scripts / 'python'}\nimport sys\nfrom {script.module} import {script.attr.split('.')[0]}\n"
            f"sys.exit({script.attr}())\n"
        )
        path.chmod(0o755)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(target)
