"""A disk that forgets what was not synced when the power goes: real files, with a memory of every fsync.

A file keeps the bytes of its last fsync, or the current ones, or a torn mixture. A folder keeps the entries of its
last fsync or the current ones: a rename that no fsync of the parent followed may never have happened.
"""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entries = dict[str, int]  # name → inode


@dataclass
class Disk:
    """Everything below `root`."""

    root: Path
    files: dict[int, bytes] = field(default_factory=dict)
    folders: dict[int, Entries] = field(default_factory=dict)

    def synced(self, path: Path) -> None:
        """fsync has returned for this file or folder."""
        inode = path.stat().st_ino
        if path.is_dir():
            self.folders[inode] = _entries(path)
        else:
            self.files[inode] = path.read_bytes()

    def cut(self, rng: random.Random) -> None:
        """The power goes, and comes back."""
        self.folders.setdefault(self.root.stat().st_ino, _entries(self.root))
        self._cut_folder(self.root, rng)

    def _cut_folder(self, folder: Path, rng: random.Random) -> None:
        kept = self.folders.get(folder.stat().st_ino, {})
        now = _entries(folder)
        if now != kept and rng.random() < 0.5:
            self._restore(folder, now, kept)
        for path in sorted(folder.iterdir()):
            if path.is_dir():
                self._cut_folder(path, rng)
            else:
                self._cut_file(path, rng)

    def _restore(self, folder: Path, now: Entries, kept: Entries) -> None:
        moved = {inode: name for name, inode in now.items() if name not in kept}
        for name, inode in sorted(kept.items()):
            if name in now and now[name] == inode:
                continue
            if name in now:
                _remove(folder / name)
            if inode in moved:
                (folder / moved.pop(inode)).rename(folder / name)
            else:
                self._write_again(folder / name, inode)
        for name in sorted(moved.values()):
            _remove(folder / name)

    def _write_again(self, path: Path, inode: int) -> None:
        """What was removed, and is back."""
        if inode in self.folders:
            path.mkdir()
            for name, child in sorted(self.folders[inode].items()):
                self._write_again(path / name, child)
            self.synced(path)
        else:
            path.write_bytes(self.files.get(inode, b""))
            self.synced(path)

    def _cut_file(self, path: Path, rng: random.Random) -> None:
        inode, now = path.stat().st_ino, path.read_bytes()
        kept = self.files.get(inode, b"")
        if now == kept:
            return
        torn = now[: rng.randrange(len(now) + 1)]
        path.write_bytes(rng.choice([kept, now, torn, torn + b"\0" * (len(now) - len(torn))]))


class SyncSpy:
    """The module `os` as jobs.files sees it: fsync reaches the simulated disk, the rest the real one."""

    def __init__(self, disk: Callable[[], Disk]) -> None:
        self._disk = disk

    def fsync(self, descriptor: int) -> None:
        self._disk().synced(Path(f"/proc/self/fd/{descriptor}").readlink())

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _entries(folder: Path) -> Entries:
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
