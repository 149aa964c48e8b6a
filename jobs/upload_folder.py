"""The folder of uploaded files: a reader sees a whole file or none, and what a dead process left is swept.

A file is called by its id. While it comes or goes it has a second name, `.` and the id, which says that its row
may not be there: whoever starts next looks, and removes what no row names. A file that arrives is locked until its
row is written, so that nobody takes it for a dead process's. Files without a second name are never swept: a
database that is not ours costs nobody a file.
"""

import fcntl
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from jobs.errors import JobError, NoSuchFile, StoreUnavailable
from jobs.faults import point
from jobs.files import sync
from jobs.store_files import FileStore

RETRY_S = 5.0
log = logging.getLogger(__name__)


class Draft:
    """A file that arrives: as a context, of the moments in which it gets its row. What raises there removes it."""

    def __init__(self, folder: Path, file_id: str) -> None:
        self.path, self._mark = folder / file_id, folder / f".{file_id}"
        self._file = _create_locked(self._mark)

    def write(self, part: bytes) -> None:
        """Append. Raises OSError."""
        self._file.write(part)

    def make_durable(self) -> None:
        """Make it durable under its name. Raises OSError."""
        self._file.flush()
        point("fsync.upload.before")
        os.fsync(self._file.fileno())
        point("fsync.upload.after")
        point("link.upload.before")
        os.link(self._mark, self.path)
        point("link.upload.after")
        sync(self.path.parent)

    def discard(self) -> None:
        """Remove all of it."""
        self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        self._mark.unlink(missing_ok=True)
        with suppress(OSError):  # of what a full disk did not take
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._close()
        elif issubclass(kind, StoreUnavailable):  # perhaps the row is there: the sweep will know
            self._file.close()
        else:
            self.discard()


class UploadFolder:
    """All files, by id."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are; the id must come from a row."""
        return self._folder / file_id

    def draft(self, file_id: str) -> Draft:
        """A new file. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return Draft(self._folder, file_id)

    def remove(self, file_id: str, forget: Callable[[], None]) -> None:
        """Remove a file once `forget` has removed its row; if that raises, the file stays."""
        path, mark = self._folder / file_id, self._folder / f".{file_id}"
        with suppress(FileNotFoundError, FileExistsError):
            point("link.removal.before")
            os.link(path, mark)
            point("link.removal.after")
        try:
            forget()
        except StoreUnavailable:  # perhaps the row is gone: the sweep will know
            raise
        except JobError:
            mark.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)

    def sweep(self, store: FileStore) -> None:
        """Remove what dead processes left. Raises StoreUnavailable."""
        for mark in sorted(self._folder.glob(".file_*")):
            with suppress(FileNotFoundError), mark.open("rb") as file:
                if _lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    self._settle(mark, store)

    def _settle(self, mark: Path, store: FileStore) -> None:
        file_id = mark.name.removeprefix(".")
        try:
            store.get_file(file_id)
        except NoSuchFile:
            log.info("an unfinished upload is removed: %s", file_id)
            self.path(file_id).unlink(missing_ok=True)
        mark.unlink()


class UploadSweep:
    """A loop of the API's: sweeps once, when it starts."""

    def __init__(self, folder: UploadFolder, store: FileStore) -> None:
        self._folder, self._store = folder, store

    def run(self, stop: threading.Event) -> None:
        """Return once swept, or when `stop` is set."""
        while not stop.is_set():
            try:
                self._folder.sweep(self._store)
                return
            except (StoreUnavailable, OSError) as error:
                log.warning("unfinished uploads are not swept yet: %s", error)
            stop.wait(RETRY_S)


def _create_locked(path: Path) -> BinaryIO:
    """A new file that is ours until it is closed."""
    while True:
        file = path.open("xb")
        _lock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # a sweep came between


def _lock(file: BinaryIO, operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    return True
