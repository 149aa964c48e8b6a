"""Which weights a source is: the hub's commit, and a sha256 that anybody can compute again."""

import hashlib
from pathlib import Path

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from jobs.scoring_wire import Weights
from rlhf_core.models import WeightSource


def identity(source: WeightSource) -> Weights:
    """Of a source that has been loaded; reads its weights once more."""
    config = "config.json" if source.base is None else "adapter_config.json"
    try:
        found = cached_file(source.path, config, local_files_only=True)
        folder = Path(found).parent
        return Weights(revision=extract_commit_hash(found, None), weights_sha256=weights_sha256(folder))
    except OSError:  # somebody has taken the files away: what is in memory can still be scored
        return Weights()


def weights_sha256(folder: Path) -> str | None:
    """Of one file what `sha256sum *.safetensors` prints, of several the sha256 of all that it prints."""
    sums: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            sums.append((hashlib.file_digest(file, "sha256").hexdigest(), path.name))
    if len(sums) < 2:
        return sums[0][0] if sums else None
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in sums).encode()).hexdigest()
