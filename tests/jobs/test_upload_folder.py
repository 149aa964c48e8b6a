"""The folder of uploads: what a dead process left goes, what lives or what no row of ours explains stays."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import FileInUse, StoreUnavailable
from jobs.schema import metadata
from jobs.sql_store import SqlStore
from jobs.store_files import NewFile
from jobs.upload_folder import UploadFolder

A, B, C, D = (f"file_{n:032x}" for n in range(4))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    store = SqlStore(f"sqlite:///{tmp_path}/kleash.db")
    metadata.create_all(store.engine)
    yield store
    store.close()


@pytest.fixture
def uploads(tmp_path: Path) -> UploadFolder:
    return UploadFolder(tmp_path / "uploads")


def names(uploads: UploadFolder) -> list[str]:
    return sorted(path.name for path in uploads.path(A).parent.iterdir())


def insert(store: SqlStore, file_id: str) -> None:
    new = NewFile(id=file_id, owner="me", name="n", purpose="items", bytes=1, lines=1, sha256="0" * 64)
    store.create_file(new, owner_may_have=10)


def failing(uploads: UploadFolder, file_id: str, error: Exception) -> None:
    with uploads.draft(file_id) as draft:
        draft.make_durable()
        raise error


def test_a_sweep_removes_what_is_marked_unlocked_and_without_a_row(
    uploads: UploadFolder, store: SqlStore
) -> None:
    uploads.sweep(store)  # before the first upload
    living = uploads.draft(A)
    living.write(b"x")
    folder = uploads.path(A).parent
    for file_id in (B, C, D):
        uploads.path(file_id).write_bytes(b"x")
    for file_id in (B, C):  # of processes that died: before the row was written, and after
        os.link(uploads.path(file_id), folder / f".{file_id}")
    insert(store, C)
    uploads.sweep(store)
    assert names(uploads) == [f".{A}", C, D], "no row names D, but it is not marked: another database may"
    with living:
        living.make_durable()
        insert(store, A)
    uploads.sweep(store)
    assert names(uploads) == [A, C, D]
    assert uploads.path(A).read_bytes() == b"x"


def test_what_raises_while_the_row_is_written_removes_the_file(uploads: UploadFolder) -> None:
    with pytest.raises(FileInUse):
        failing(uploads, A, FileInUse("job"))
    assert names(uploads) == []


def test_a_row_that_may_be_there_is_left_to_the_sweep(uploads: UploadFolder, store: SqlStore) -> None:
    for file_id in (A, B):
        with pytest.raises(StoreUnavailable):
            failing(uploads, file_id, StoreUnavailable("gone while it committed"))
    insert(store, B)
    assert names(uploads) == [f".{A}", f".{B}", A, B]
    uploads.sweep(store)
    assert names(uploads) == [B]


def test_a_file_is_removed_with_its_row_or_not_at_all(uploads: UploadFolder, store: SqlStore) -> None:
    for file_id in (A, B, C):
        with uploads.draft(file_id) as draft:
            draft.make_durable()
            insert(store, file_id)

    def refuse() -> None:
        raise FileInUse("job")

    with pytest.raises(FileInUse):
        uploads.remove(A, refuse)
    assert names(uploads) == [A, B, C]

    def forget_without_a_word() -> None:
        store.delete_file(B, "me")
        raise StoreUnavailable("gone while it committed")

    with pytest.raises(StoreUnavailable):
        uploads.remove(B, forget_without_a_word)
    assert names(uploads) == [f".{B}", A, B, C]
    uploads.sweep(store)
    uploads.remove(C, lambda: store.delete_file(C, "me"))
    assert names(uploads) == [A]
