"""The shards of a score job as one attempt sees them: which are done, and how the next becomes durable."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from jobs.bulk import RESULTS
from jobs.files import LocalFiles
from jobs.leftovers import remove_leftovers
from jobs.ports import Files
from jobs.spec import Job, NewEvent, NewShard, Shard
from jobs.store import Store
from worker.failures import storage_error


class Shards:
    """One attempt's view of its job's shards."""

    def __init__(self, store: Store, job: Job, folder: Path, files: Files | None = None) -> None:
        self._store, self._job, self._folder = store, job, folder
        self._files = files or LocalFiles()
        self._artifacts = folder.parents[1]

    def tidy(self) -> None:
        """Remove what earlier attempts left unfinished."""
        remove_leftovers(self._store, self._files, self._job.id, self._folder)

    def done(self) -> list[Shard]:
        """The first shards, up to the one whose results are not there as they were written."""
        good: list[Shard] = []
        for shard in self._store.list_shards(self._job.id):
            if shard.index != len(good) or not self._verifies(shard):
                event = NewEvent(
                    type="shard.corrupt",
                    message=f"Shard {len(good)} is damaged or missing: scored again from there.",
                    level="warning",
                    data={"index": len(good)},
                )
                self._store.add_event(self._job.id, self._job.attempt, event)
                break
            good.append(shard)
        return good

    def file(self, path: str) -> Path:
        """The results of the shard with this path."""
        return self._artifacts / path / RESULTS

    def _verifies(self, shard: Shard) -> bool:
        try:
            with self.file(shard.path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except OSError:
            return False

    def save(
        self,
        index: int,
        results: list[bytes],
        cursor: dict[str, Any],
        *,
        metrics: dict[str, float],
        timings: dict[str, float],
    ) -> NewShard:
        """The file first, durable and renamed; then the fenced row.

        Raises:
            StorageError: nothing of it is left on the disk.
        """
        final = self._folder / f"results-{index:06d}"
        partial = final.with_name(f"{final.name}.partial")
        digest, size = hashlib.sha256(), 0
        try:
            self._files.remove_folder(partial)
            partial.mkdir(parents=True)
            with (partial / RESULTS).open("wb") as file:
                for line in results:
                    size += file.write(line)
                    digest.update(line)
            self._files.publish_folder(partial, final)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._files.remove_folder(partial)
            raise storage_error(error) or error from error
        shard = NewShard(
            index=index,
            items=len(results),
            path=str(final.relative_to(self._artifacts)),
            sha256=digest.hexdigest(),
            bytes=size,
            cursor=cursor,
        )
        self._store.record_shard(self._job.id, self._job.attempt, shard, metrics=metrics, timings=timings)
        return shard
