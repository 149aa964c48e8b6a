"""/v1/files: prompts, texts and items, uploaded once and named by their id in jobs."""

import os
from pathlib import Path

from kleash.calls import Call, document, new_key, nothing
from kleash.documents import Page
from kleash.service_documents import File, Purpose

FILES, FILE = "/v1/files", "/v1/files/{file_id}"


def create(
    content: bytes | str | os.PathLike[str],
    *,
    purpose: Purpose,
    name: str | None = None,
    idempotency_key: str | None = None,
) -> Call[File]:
    """Upload JSON lines: bytes, or the file at a path. `purpose` says what its lines are."""
    if not isinstance(content, bytes):
        name, content = name or Path(content).name, Path(content).read_bytes()
    return Call(
        "files_create",
        "POST",
        FILES,
        document,
        query={"name": name or f"{purpose}.jsonl", "purpose": purpose},
        headers=new_key(idempotency_key) | {"content-type": "application/jsonl"},
        content=content,
        repeatable=True,
    )


def list_(
    *, purpose: Purpose | None = None, limit: int | None = None, after: str | None = None
) -> Call[Page[File]]:
    """One page, newest first."""
    query = {"purpose": purpose, "limit": limit, "after": after}
    return Call("files_list", "GET", FILES, document, query=query, repeatable=True)


def get(file_id: str) -> Call[File]:
    """What is known of a file."""
    return Call("files_get", "GET", FILE, document, {"file_id": file_id}, repeatable=True)


def content(file_id: str) -> Call[None]:
    """The bytes as they were uploaded, in pieces."""
    path = f"{FILE}/content"
    return Call(
        "files_content",
        "GET",
        path,
        lambda _: None,
        {"file_id": file_id},
        repeatable=True,
        streamed=True,
    )


def delete(file_id: str) -> Call[None]:
    """Delete a file that no job needs any more."""
    return Call("files_delete", "DELETE", FILE, nothing, {"file_id": file_id})
