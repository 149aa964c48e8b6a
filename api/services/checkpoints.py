"""Checkpoints by their id: what they consist of, their files, and whether retention may drop them."""

import hashlib
import re
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson

from api.confined import open_below, size_of
from api.downloads import Download, Part, bytes_part
from api.errors import ArtifactGone
from jobs.errors import CheckpointNotFound
from jobs.spec import Checkpoint
from jobs.store import Store
from jobs.store_data import CheckpointValues

CHECKPOINT_ID = re.compile(r"ckpt_[0-9a-f]{32}")
MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 4 * 2**20
TAR_BLOCK = 512


class SavedFile(NamedTuple):
    """A file of a checkpoint, as the manifest has it."""

    name: str
    bytes: int
    sha256: str


class Content(NamedTuple):
    """A checkpoint with its files; None while they cannot be read."""

    checkpoint: Checkpoint
    files: list[SavedFile] | None


class CheckpointService:
    """The checkpoints of a store, below `artifacts`. Every call may raise CheckpointNotFound."""

    def __init__(self, store: Store, artifacts: Path) -> None:
        self._store, self._artifacts = store, artifacts

    def get(self, checkpoint_id: str, owner: str) -> Content:
        """The checkpoint with the files of its manifest."""
        return self._content(self._find(checkpoint_id, owner))

    def change(self, checkpoint_id: str, owner: str, values: CheckpointValues) -> Content:
        """Keep it whatever the job's `keep_last`, or no longer; or until then. Raises CheckpointInUse."""
        return self._content(self._store.change_checkpoint(_known_shape(checkpoint_id), owner, **values))

    def delete(self, checkpoint_id: str, owner: str) -> None:
        """Forget it; its files go later. Raises IllegalTransition, CheckpointInUse."""
        self._store.delete_checkpoint(_known_shape(checkpoint_id), owner)

    def file(self, checkpoint_id: str, owner: str, name: str) -> Download:
        """One file. Raises ArtifactGone: it has none of this name, or not any more."""
        checkpoint = self._find(checkpoint_id, owner)
        found = next((saved for saved in self._files(checkpoint) if saved.name == name), None)
        if found is None:
            raise ArtifactGone("the checkpoint has no such file")
        held = ExitStack()
        file = held.enter_context(self._opened(checkpoint, found))
        return Download(
            name=name,
            media_type="application/json" if name.endswith(".json") else "application/octet-stream",
            tag=f"sha256:{found.sha256}",
            sha256=found.sha256,
            parts=[Part(found.bytes, lambda: file)],
            held=held,
        )

    def archive(self, checkpoint_id: str, owner: str) -> Download:
        """All files as one tar. Raises ArtifactGone."""
        checkpoint = self._find(checkpoint_id, owner)
        folder, parts = f"{checkpoint.job_id}-{checkpoint.name}", list[Part]()
        with ExitStack() as opening:
            for saved in self._files(checkpoint):
                file = opening.enter_context(self._opened(checkpoint, saved))
                header = tarfile.TarInfo(f"{folder}/{saved.name}")
                header.size, header.mtime = saved.bytes, int(checkpoint.created_at)
                parts += [
                    bytes_part(header.tobuf(tarfile.GNU_FORMAT)),
                    Part(saved.bytes, lambda file=file: file),  # type: ignore[misc]  # bound now, not at the end
                    bytes_part(bytes(-saved.bytes % TAR_BLOCK)),
                ]
            return Download(
                name=f"{folder}.tar",
                media_type="application/x-tar",
                tag=f"tar:{checkpoint.id}.{int(checkpoint.created_at)}",
                parts=[*parts, bytes_part(bytes(2 * TAR_BLOCK))],
                held=opening.pop_all(),
            )

    def _find(self, checkpoint_id: str, owner: str) -> Checkpoint:
        return self._store.find_checkpoint(_known_shape(checkpoint_id), owner)

    def _content(self, checkpoint: Checkpoint) -> Content:
        try:
            return Content(checkpoint, self._files(checkpoint))
        except ArtifactGone:
            return Content(checkpoint, None)

    def _files(self, checkpoint: Checkpoint) -> list[SavedFile]:
        """The manifest, which is the one that was recorded, and what it lists."""
        try:
            with open_below(self._artifacts, f"{checkpoint.path}/{MANIFEST}") as file:
                text = file.read(MOST_MANIFEST_BYTES)
        except OSError:
            raise ArtifactGone("the checkpoint's files are not there any more") from None
        if hashlib.sha256(text).hexdigest() != checkpoint.sha256:
            raise ArtifactGone("the checkpoint's manifest is not the one that was recorded")
        listed: dict[str, dict[str, Any]] = orjson.loads(text)["files"]
        files = [SavedFile(name, entry["bytes"], entry["sha256"]) for name, entry in listed.items()]
        return [SavedFile(MANIFEST, len(text), checkpoint.sha256), *sorted(files)]

    def _opened(self, checkpoint: Checkpoint, saved: SavedFile) -> BinaryIO:
        try:
            file = open_below(self._artifacts, f"{checkpoint.path}/{saved.name}")
        except OSError:
            raise ArtifactGone("the file is not there any more") from None
        if size_of(file) != saved.bytes:
            file.close()
            raise ArtifactGone("the file is not the one that was saved")
        return file


def _known_shape(checkpoint_id: str) -> str:
    if not CHECKPOINT_ID.fullmatch(checkpoint_id):
        raise CheckpointNotFound(checkpoint_id)
    return checkpoint_id
