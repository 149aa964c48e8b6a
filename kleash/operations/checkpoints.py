"""/v1/checkpoints: the saves of jobs."""

from typing import Any, Literal

from kleash.calls import Call, document, nothing
from kleash.documents import Checkpoint

CHECKPOINT = "/v1/checkpoints/{checkpoint_id}"


def get(checkpoint_id: str) -> Call[Checkpoint]:
    """A save, with its files."""
    names = {"checkpoint_id": checkpoint_id}
    return Call("checkpoints_get", "GET", CHECKPOINT, document, names, repeatable=True)


def update(
    checkpoint_id: str, *, pinned: bool | None = None, expires_at: str | Literal[False] | None = False
) -> Call[Checkpoint]:
    """A pinned checkpoint is not dropped by `keep_last`. It expires at a time like 2027-01-31T12:00:00Z, or never
    (None); what is not given stays as it is.
    """
    names, body = {"checkpoint_id": checkpoint_id}, dict[str, Any]()
    if pinned is not None:
        body["pinned"] = pinned
    if expires_at is not False:
        body["expires_at"] = expires_at
    return Call("checkpoints_update", "PATCH", CHECKPOINT, document, names, body=body)


def delete(checkpoint_id: str) -> Call[None]:
    """Delete a save of a job that is done."""
    return Call("checkpoints_delete", "DELETE", CHECKPOINT, nothing, {"checkpoint_id": checkpoint_id})


def archive(checkpoint_id: str) -> Call[None]:
    """All its files as one tar, in pieces."""
    names = {"checkpoint_id": checkpoint_id}
    return _download("checkpoints_archive", f"{CHECKPOINT}/archive", names)


def file(checkpoint_id: str, name: str) -> Call[None]:
    """One of its files, in pieces."""
    names = {"checkpoint_id": checkpoint_id, "name": name}
    return _download("checkpoints_file", f"{CHECKPOINT}/files/{{name}}", names)


def _download(operation: str, path: str, names: dict[str, str]) -> Call[None]:
    return Call(operation, "GET", path, lambda _: None, names, repeatable=True, streamed=True)
