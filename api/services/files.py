"""Uploaded files: received in parts, checked line by line, read back, deleted; each call sees only its owner's."""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from uuid_utils import uuid7

from api.errors import BadFile, FileNotFound, InvalidCursor, StorageFull
from jobs.errors import FileQuotaExceeded, NoSuchFile
from jobs.lines import LineCheck, Purpose
from jobs.store_files import CreatedFile, FileStore, NewFile, StoredFile
from jobs.upload_folder import UploadFolder

FILE_ID = re.compile(r"file_[0-9a-f]{32}")
READ_BYTES = 1 << 20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class FilePage(NamedTuple):
    """One page, newest first; `more` when older files follow."""

    files: list[StoredFile]
    more: bool


class Content(NamedTuple):
    """A file and where its bytes are."""

    file: StoredFile
    path: Path

    def parts(self) -> Iterator[bytes]:
        """The bytes."""
        with self.path.open("rb") as opened:
            while part := opened.read(READ_BYTES):
                yield part


class Arrival:
    """An upload: `take` its parts in order, then `finish` or `abort`; each blocks, and may run in any thread.

    What is wrong with the content or the disk is told at the end: until then the client is sending, and would not
    hear it.
    """

    def __init__(
        self,
        store: FileStore,
        folder: UploadFolder,
        *,
        owner: str,
        name: str,
        purpose: Purpose,
        owner_may_have: int,
    ) -> None:
        self._store, self._owner_may_have = store, owner_may_have
        self._owner, self._name, self._purpose = owner, name, purpose
        self._id, self._bytes = f"file_{uuid7().hex}", 0
        self._check, self._sha256 = LineCheck(purpose), hashlib.sha256()
        self._full: StorageFull | None = None
        with _storage():
            self._draft = folder.draft(self._id)

    def take(self, part: bytes) -> None:
        """The next bytes."""
        self._bytes += len(part)
        self._check.feed(part)
        if self._check.problem or self._full:
            return
        self._sha256.update(part)
        try:
            with _storage():
                self._draft.write(part)
        except StorageFull as error:
            self._full = error

    def finish(self, idempotency_key: str | None) -> CreatedFile:
        """The row, or that of the file which this key made before.

        Raises:
            BadFile, StorageFull: it is not kept.
            FileQuotaExceeded, IdempotencyKeyReused, FileDeleted: as jobs.store_files.FileStore.create_file.
        """
        self._check.end()
        if self._full or self._check.problem:
            self.abort()
            raise self._full or BadFile(self._check.problem.detail if self._check.problem else "")
        file = NewFile(
            id=self._id,
            owner=self._owner,
            name=self._name,
            purpose=self._purpose,
            bytes=self._bytes,
            lines=self._check.lines,
            sha256=self._sha256.hexdigest(),
        )
        with self._draft as draft:
            with _storage():
                draft.make_durable()
            created = self._store.create_file(
                file, owner_may_have=self._owner_may_have, idempotency_key=idempotency_key
            )
            if created.replayed:
                draft.discard()
        return created

    def abort(self) -> None:
        """Nothing of it stays."""
        self._draft.discard()


class FileService:
    """The collection of files."""

    def __init__(self, store: FileStore, folder: UploadFolder, *, owner_may_have: int) -> None:
        self._store, self._folder, self._owner_may_have = store, folder, owner_may_have

    def begin(self, owner: str, *, name: str, purpose: Purpose, declared_bytes: int) -> Arrival:
        """Room for an upload. Raises FileQuotaExceeded, StorageFull."""
        if self._store.file_bytes(owner) + declared_bytes > self._owner_may_have:
            raise FileQuotaExceeded(self._owner_may_have)
        return Arrival(
            self._store,
            self._folder,
            owner=owner,
            name=name,
            purpose=purpose,
            owner_may_have=self._owner_may_have,
        )

    def get(self, file_id: str, owner: str) -> StoredFile:
        """The file. Raises NoSuchFile, as all below."""
        if not FILE_ID.fullmatch(file_id):
            raise NoSuchFile(file_id)
        return self._store.get_file(file_id, owner)

    def content(self, file_id: str, owner: str) -> Content:
        """The file with its bytes."""
        return Content(self.get(file_id, owner), self._folder.path(file_id))

    def page(self, owner: str, *, purpose: str | None, after: str | None, limit: int) -> FilePage:
        """Newest first, after the file `after`. Raises InvalidCursor."""
        if after is not None and not FILE_ID.fullmatch(after):
            raise InvalidCursor
        files = self._store.list_files(owner, purpose=purpose, after=after, limit=limit + 1)
        return FilePage(files[:limit], len(files) > limit)

    def delete(self, file_id: str, owner: str) -> None:
        """Row and bytes. Raises FileInUse while a job that is not done reads it."""
        self.get(file_id, owner)
        self._folder.remove(file_id, lambda: self._store.delete_file(file_id, owner))

    def for_job(self, file_id: str, owner: str, purpose: Purpose) -> Content:
        """What a job shall read. Raises FileNotFound, also if the file is for another purpose."""
        try:
            found = self.content(file_id, owner)
        except NoSuchFile:
            raise FileNotFound("there is no such uploaded file; see GET /v1/files") from None
        if found.file.purpose != purpose:
            raise FileNotFound(f"this needs a file that was uploaded with purpose={purpose}")
        return found


def is_file_id(name: str) -> bool:
    """True for what names an uploaded file, and never a path."""
    return FILE_ID.fullmatch(name) is not None


@contextmanager
def _storage() -> Iterator[None]:
    """What the disk refuses as a StorageFull."""
    try:
        yield
    except OSError as error:
        why = "the disk is full" if error.errno in FULL else "the folder of uploads cannot be written"
        raise StorageFull(f"{why}: this server can store no file now") from error
