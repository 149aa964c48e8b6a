"""Uploaded files in the database, and which job reads which."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from jobs.errors import FileDeleted, FileGone, FileInUse, FileQuotaExceeded, NoSuchFile
from jobs.schema import jobs
from jobs.schema_files import files, job_files
from jobs.sql_base import NUL
from jobs.sql_idempotency import IdempotencyRows, KeyUse
from jobs.states import TERMINAL
from jobs.store_files import CreatedFile, NewFile, StoredFile


class FileRows(IdempotencyRows):
    """jobs.store_files.FileStore."""

    def create_file(
        self, file: NewFile, *, owner_may_have: int, idempotency_key: str | None = None
    ) -> CreatedFile:
        """See jobs.store_files.FileStore."""
        use = None
        if idempotency_key is not None:
            use = KeyUse(file.owner, "files_create", idempotency_key, _request_sha256(file))
        with self.key_held(use), self.writing() as connection:
            if use is not None:
                before = self.claim_key(connection, use, file.id)
                if before is not None:
                    try:
                        return CreatedFile(file=_one(connection, before, file.owner), replayed=True)
                    except NoSuchFile:
                        raise FileDeleted(before) from None
            _one_at_a_time(connection, file.owner)
            if _bytes(connection, file.owner) + file.bytes > owner_may_have:
                raise FileQuotaExceeded(owner_may_have)
            connection.execute(insert(files).values(**asdict(file), created_at=self.now()))
            return CreatedFile(file=_one(connection, file.id, file.owner), replayed=False)

    def file_bytes(self, owner: str) -> int:
        """See jobs.store_files.FileStore."""
        with self.reading() as connection:
            return _bytes(connection, owner)

    def get_file(self, file_id: str, owner: str | None = None) -> StoredFile:
        """See jobs.store_files.FileStore."""
        with self.reading() as connection:
            return _one(connection, file_id, owner)

    def list_files(
        self, owner: str, *, purpose: str | None = None, after: str | None = None, limit: int = 20
    ) -> list[StoredFile]:
        """See jobs.store_files.FileStore."""
        query = select(files).where(files.c.owner == owner).order_by(files.c.id.desc()).limit(limit)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(files.c.id < after)
        with self.reading() as connection:
            return [StoredFile(**row) for row in connection.execute(query).mappings()]

    def delete_file(self, file_id: str, owner: str) -> None:
        """See jobs.store_files.FileStore."""
        with self.writing() as connection:
            _one(connection, file_id, owner, lock=True)
            reader = connection.execute(
                select(jobs.c.id)
                .join(job_files, job_files.c.job_id == jobs.c.id)
                .where(job_files.c.file_id == file_id, jobs.c.status.not_in(TERMINAL))
                .limit(1)
            ).scalar_one_or_none()
            if reader is not None:
                raise FileInUse(reader)
            connection.execute(delete(files).where(files.c.id == file_id))


def hold_files(connection: Connection, job_id: str, resolved: Mapping[str, Any]) -> None:
    """Keep the uploads that a new job reads until it is done. Raises FileGone."""
    for file_id in sorted({upload["id"] for upload in resolved.get("files", {}).values()}):
        there = select(files.c.id).where(files.c.id == file_id).with_for_update(read=True)
        if connection.execute(there).one_or_none() is None:
            raise FileGone(file_id)
        connection.execute(insert(job_files).values(job_id=job_id, file_id=file_id))


def _one(connection: Connection, file_id: str, owner: str | None = None, *, lock: bool = False) -> StoredFile:
    """The row of a file; NoSuchFile without telling a stranger's file from none."""
    if NUL in file_id:
        raise NoSuchFile(file_id)
    query = select(files).where(files.c.id == file_id)
    if owner is not None:
        query = query.where(files.c.owner == owner)
    if lock:
        query = query.with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NoSuchFile(file_id)
    return StoredFile(**row)


def _bytes(connection: Connection, owner: str) -> int:
    query = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.owner == owner)
    return int(connection.execute(query).scalar_one())


def _one_at_a_time(connection: Connection, owner: str) -> None:
    """Two uploads of one owner must not both see room for one; on SQLite all writers wait for each other."""
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(f"files of {owner}".encode()).digest()[:8], signed=True)
        connection.execute(select(func.pg_advisory_xact_lock(key)))


def _request_sha256(file: NewFile) -> str:
    return hashlib.sha256(f"{file.purpose}\n{file.sha256}\n{file.name}".encode()).hexdigest()
