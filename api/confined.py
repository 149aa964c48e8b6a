"""Files below a root, and nothing else: no link is followed on the way, and no device or pipe is opened."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_below(root: Path, path: str) -> BinaryIO:
    """The regular file at a relative path, unbuffered.

    Raises:
        OSError: it is not there, is no regular file, or the path would leave the root.
    """
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") or "\x00" in part for part in (*folders, name)):
        raise FileNotFoundError("not a plain relative path")
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            inner = os.open(folder, FOLDER, dir_fd=at)
            os.close(at)
            at = inner
        descriptor = os.open(name, FILE, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError("not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def size_of(file: BinaryIO) -> int:
    """In bytes, now."""
    return os.fstat(file.fileno()).st_size
