"""The texts of a run: from the config, or from a JSONL file that the API has found. Torch-free."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.lines import BadLine, text_of
from jobs.real_paths import open_real
from worker.failures import DatasetError


def texts_of(
    resolved: Mapping[str, Any], name: str, inline: tuple[str, ...] | None, *, field: str = "prompt"
) -> list[str]:
    """Those given inline, else those of the file that the job's `name` was resolved to. Raises DatasetError."""
    if inline is not None:
        return list(inline)
    file = resolved.get(name)
    return [] if file is None else read_texts(Path(file), field=field, sha256=upload_sha256(resolved, name))


def upload_sha256(resolved: Mapping[str, Any], name: str) -> str | None:
    """What the upload that the job's `name` was resolved to must hold; None for a file below the roots."""
    upload = resolved.get("files", {}).get(name)
    return None if upload is None else str(upload["sha256"])


def read_texts(file: Path, *, field: str = "prompt", sha256: str | None = None) -> list[str]:
    """A text from each line that is not blank.

    Raises:
        DatasetError: it cannot be read, is not the file with this sha256, or a line has no text.
    """
    try:
        with open_real(str(file)) as opened:
            content = opened.read()
    except OSError as error:
        raise DatasetError(f"{file.name} cannot be read: {error.strerror}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DatasetError(f"{file.name} is not what was uploaded")
    texts: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        text = text_of(number, line, field)
        if isinstance(text, BadLine):
            raise DatasetError(f"{file.name}: {text.detail}")
        texts.append(text)
    if not texts:
        raise DatasetError(f"{file.name} has no line")
    return texts
