"""The folders of checkpoints on a local disk: a reader sees a whole folder or none, also after a power cut."""

import os
import shutil
from pathlib import Path


class LocalFiles:
    """jobs.ports.Files."""

    def publish_folder(self, partial: Path, final: Path) -> None:
        """See jobs.ports.Files. A `final` that exists is moved aside first and removed last."""
        for folder, _, names in os.walk(partial):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        replaced = final.with_name(f".{final.name}.replaced")
        self.remove_folder(replaced)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        _sync(final.parent)
        self.remove_folder(replaced)

    def remove_folder(self, folder: Path) -> None:
        """See jobs.ports.Files."""
        if folder.exists():
            shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Wait until the file's bytes, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
