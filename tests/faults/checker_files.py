"""The checker's view of the artifacts: manifests, weights, and what nobody names."""

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path

MANIFEST, RESULTS = "manifest.json", "results.jsonl"


def damage(folder: Path, manifest_sha256: str) -> str | None:
    """What is wrong with a listed checkpoint, or None."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(manifest).hexdigest() != manifest_sha256:
            return "its manifest is not the recorded one"
        for name, entry in json.loads(manifest)["files"].items():
            if _sha256(folder / name) != entry["sha256"]:
                return f"{name} is damaged"
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def holds_results(folder: Path, sha256: str) -> bool:
    """True if the results of a shard are there as they were recorded."""
    return (folder / RESULTS).is_file() and _sha256(folder / RESULTS) == sha256


def weights_sha256(folder: Path) -> str:
    """Of all that was trained: weights, value head, optimizer and RNG, every `*.safetensors` in order."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {_sha256(path)}\n".encode())
    return digest.hexdigest()


def left_behind(folder: Path, *, named: Collection[Path], below_attempt: float) -> Iterator[Path]:
    """Folders in those of a job's earlier attempts that nothing names; `named`: those that a row names."""
    for attempt in sorted(path for path in folder.glob("*") if path.name.isdecimal()):
        if int(attempt.name) >= below_attempt:
            continue
        for item in sorted(path for path in attempt.iterdir() if path.is_dir()):
            temporary = item.name.endswith(".partial") or item.name.endswith(".replaced")
            saved = (item / MANIFEST).exists() or (item / RESULTS).exists()
            if temporary or (saved and item.resolve() not in named):
                yield item


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
