"""All that can be downloaded of a job: its checkpoints, its results, its logs."""

from pathlib import Path
from typing import Literal, NamedTuple

from api.confined import open_below, size_of
from api.services.job_ids import known_shape
from jobs.attempt_log import log_path
from jobs.spec import Job
from jobs.store import Store


class Artifact(NamedTuple):
    """Something to download from `url`; `sha256` is that of a checkpoint's manifest."""

    kind: Literal["checkpoint", "results", "log"]
    name: str
    bytes: int
    sha256: str | None
    url: str
    created_at: float | None


class ArtifactService:
    """The artifacts of a store's jobs, below a folder. Every call may raise JobNotFound."""

    def __init__(self, store: Store, artifacts: Path) -> None:
        self._store, self._artifacts = store, artifacts

    def all(self, job_id: str, owner: str) -> list[Artifact]:
        """Checkpoints by step, then results, then logs by attempt."""
        job = self._store.get_job(known_shape(job_id), owner)
        return [*self._checkpoints(job), *self._results(job), *self._logs(job)]

    def _checkpoints(self, job: Job) -> list[Artifact]:
        return [
            Artifact(
                "checkpoint",
                save.name,
                save.bytes,
                save.sha256,
                f"/v1/checkpoints/{save.id}/archive",
                save.created_at,
            )
            for save in self._store.list_checkpoints(job.id)
        ]

    def _results(self, job: Job) -> list[Artifact]:
        shards = self._store.list_shards(job.id)
        size, url = sum(shard.bytes for shard in shards), f"/v1/jobs/{job.id}/results"
        return (
            [Artifact("results", "results.jsonl", size, None, url, shards[-1].created_at)] if shards else []
        )

    def _logs(self, job: Job) -> list[Artifact]:
        found = []
        for attempt in range(1, job.attempt + 1):
            try:
                with open_below(self._artifacts, log_path(job.id, attempt)) as file:
                    size = size_of(file)
            except OSError:
                continue
            url = f"/v1/jobs/{job.id}/logs?attempt={attempt}"
            found.append(Artifact("log", f"attempt-{attempt}.log", size, None, url, None))
        return found
