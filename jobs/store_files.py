"""The port to the rows of uploaded files."""

from dataclasses import dataclass
from typing import Protocol

from jobs.lines import Purpose


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """A file whose bytes are durable."""

    id: str
    owner: str
    name: str
    purpose: Purpose
    bytes: int
    lines: int  # that are not blank
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StoredFile(NewFile):
    """A file as stored."""

    created_at: float


@dataclass(frozen=True, kw_only=True)
class CreatedFile:
    """The file of a create call; `replayed` when the idempotency key had made it before."""

    file: StoredFile
    replayed: bool


class FileStore(Protocol):
    """The part of jobs.store.Store about uploaded files. Each method is one transaction."""

    def create_file(
        self, file: NewFile, *, owner_may_have: int, idempotency_key: str | None = None
    ) -> CreatedFile:
        """Insert a file, or return the one that this owner's key made before.

        Raises:
            FileQuotaExceeded: the owner's files would have more than `owner_may_have` bytes.
            IdempotencyKeyReused: the key belongs to another file.
            FileDeleted: what the key made has been deleted.
        """
        ...

    def file_bytes(self, owner: str) -> int:
        """Of all files of an owner."""
        ...

    def get_file(self, file_id: str, owner: str | None = None) -> StoredFile:
        """The file. Raises NoSuchFile, also when `owner` is given and is not the file's."""
        ...

    def list_files(
        self, owner: str, *, purpose: str | None = None, after: str | None = None, limit: int = 20
    ) -> list[StoredFile]:
        """Newest first; `after` is the last id of the page before."""
        ...

    def delete_file(self, file_id: str, owner: str) -> None:
        """Forget a file. Raises NoSuchFile, FileInUse (a job that is not done reads it)."""
        ...
