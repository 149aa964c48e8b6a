"""The folders of checkpoints on a local disk: a reader sees a whole folder or none, also after a power cut."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from jobs.faults import point

LEVELS = 4  # attempt, job, artifacts, data: a folder whose own entry is not durable takes all in it along


class LocalFiles:
    """jobs.ports.Files."""

    def publish_folder(self, partial: Path, final: Path) -> None:
        """See jobs.ports.Files. A `final` that exists is moved aside first and removed last."""
        for where, _, names in os.walk(partial):
            for name in names:
                sync(Path(where, name))
            sync(Path(where))
        replaced = final.with_name(f".{final.name}.replaced")
        self.remove_folder(replaced)
        if final.exists():
            point("rename.replaced.before")
            final.rename(replaced)
            point("rename.replaced.after")
        try:
            point("rename.before")
            partial.rename(final)
            point("rename.after")
        except OSError:
            if replaced.exists():
                point("rename.before")
                replaced.rename(final)
                point("rename.after")
            raise
        for parent in final.parents[:LEVELS]:
            sync(parent)
        self.remove_folder(replaced)

    def remove_folder(self, folder: Path) -> None:
        """See jobs.ports.Files."""
        if folder.exists():
            point("remove.before")
            shutil.rmtree(folder)
            sync(folder.parent)  # or a power cut brings it back
            point("remove.after")

    def keep_only(self, folder: Path, kept: Collection[Path]) -> None:
        """See jobs.ports.Files."""
        for path in list(folder.iterdir()):
            if path.is_dir() and path not in kept:
                point("remove.before")
                shutil.rmtree(path)
                point("remove.after")
        sync(folder)  # also for who removed something and died before it was durable


def sync(path: Path) -> None:
    """Wait until the file's bytes, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        point("fsync.before")
        os.fsync(descriptor)
        point("fsync.after")
    finally:
        os.close(descriptor)
