"""/v1/checkpoints: the saves of jobs."""

from kleash.calls import Call, document, nothing
from kleash.documents import Checkpoint

CHECKPOINT = "/v1/checkpoints/{checkpoint_id}"


def get(checkpoint_id: str) -> Call[Checkpoint]:
    """A save, with its files."""
    names = {"checkpoint_id": checkpoint_id}
    return Call("checkpoints_get", "GET", CHECKPOINT, document, names, repeatable=True)


def update(checkpoint_id: str, *, pinned: bool) -> Call[Checkpoint]:
    """A pinned checkpoint is not dropped by `keep_last`."""
    names, body = {"checkpoint_id": checkpoint_id}, {"pinned": pinned}
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
