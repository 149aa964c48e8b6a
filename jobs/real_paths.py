"""Paths that were checked are opened as they were checked: no link may lead elsewhere since."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

NO_LINK = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def real_path(path: str | Path) -> Path | None:
    """Where all links lead in the end; None if that cannot be found out (/proc/1/root, for one)."""
    try:
        return Path(os.path.realpath(path))
    except OSError:
        return None


def open_real(path: str) -> BinaryIO:
    """Open a regular file by its real path (`os.path.realpath` at the time of the check), part by part.

    Raises:
        OSError: it is not there, is no regular file, or a link is on the way now.
    """
    *folders, name = Path(os.path.abspath(path)).parts
    at = os.open(folders[0], NO_LINK | os.O_DIRECTORY)
    try:
        for folder in folders[1:]:
            below = os.open(folder, NO_LINK | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        found = os.open(name, NO_LINK | os.O_NONBLOCK, dir_fd=at)  # a pipe would keep us waiting
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError("not a regular file")
    return open(found, "rb")


def has_way_out(folder: Path, roots: Sequence[Path]) -> bool:
    """True if a link in the folder leads to where no root is an ancestor. `roots` are real paths."""
    with os.scandir(folder) as entries:
        links = [entry.path for entry in entries if entry.is_symlink()]
    return not all(is_below(real_path(link), roots) for link in links)


def is_below(path: Path | None, roots: Sequence[Path]) -> bool:
    """True if a root is an ancestor of the path, or is it. All are real paths."""
    return path is not None and any(path.is_relative_to(root) for root in roots)
