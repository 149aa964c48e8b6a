"""The checkpoints of one attempt: saving, going on from the last good one, keeping the last few."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from jobs.files import LocalFiles
from jobs.leftovers import remove_leftovers
from jobs.ports import Files
from jobs.spec import Checkpoint, Job, NewEvent
from jobs.store import Store
from rlhf_core.checkpoint import other_environment, read_checkpoint, verify_checkpoint, write_checkpoint
from rlhf_core.controllers import make_controller
from rlhf_core.errors import CheckpointError
from rlhf_core.policies import Policy
from rlhf_core.update import TrainState
from worker.failures import storage_error

FINAL = "final"


class Restored(NamedTuple):
    """Where a run goes on."""

    policy: Policy
    state: TrainState
    final: Checkpoint | None = None  # the job's own last one: nothing is left to train


class Saves:
    """One attempt's view of its job's checkpoints."""

    def __init__(self, store: Store, job: Job, folder: Path, device: str, files: Files | None = None) -> None:
        self._store, self._job, self._folder, self._device = store, job, folder, device
        self._files = files or LocalFiles()
        self._source = str(job.resolved["model"]["path"])
        self._artifacts = folder.parents[1]

    def tidy(self) -> None:
        """Remove what earlier attempts, and this one before it started again, left unfinished."""
        remove_leftovers(self._store, self._files, self._job.id, self._folder)

    def restore(self) -> Restored | None:
        """The job's last checkpoint that verifies, else the one it was asked to resume from, else None.

        Raises:
            CheckpointError: the one it was asked to resume from is damaged.
        """
        for checkpoint in reversed(self._store.list_checkpoints(self._job.id)):
            try:
                policy, state = self._read(checkpoint.path, checkpoint.sha256)
            except CheckpointError as error:
                self._event(
                    "checkpoint.corrupt",
                    str(error),
                    level="warning",
                    name=checkpoint.name,
                    step=checkpoint.step,
                )
                self._drop([checkpoint])
                continue
            self._event("job.resumed_from", f"Resumed from {checkpoint.name}.", step=checkpoint.step)
            return Restored(policy, state, checkpoint if checkpoint.name == FINAL else None)
        start = self._job.resolved.get("resume_from")
        if start is None:
            return None
        policy, state = self._read(start["path"], start["sha256"])
        if not start["same_kl"]:
            state.controller, state.steps_above_limit = make_controller(self._job.ppo.kl), 0
        if not start.get("same_evaluation", False):  # absent from jobs that were queued before it was
            state.baseline, state.latest, state.best_of_n = None, None, ()
        source = f"{start['job_id']}@{start['name']}"
        self._event("job.resumed_from", f"Resumed from {source}.", step=state.step, checkpoint=source)
        return Restored(policy, state)

    def folder(self, path: str) -> Path:
        """Of a checkpoint with this path."""
        return self._artifacts / path

    def _read(self, path: str, sha256: str) -> tuple[Policy, TrainState]:
        folder = self.folder(path)
        manifest = verify_checkpoint(folder, sha256)
        restored = read_checkpoint(folder, self._job.ppo, source=self._source, device=self._device)
        if differences := other_environment(manifest):
            self._event(
                "checkpoint.other_environment",
                f"{folder.name} was made elsewhere ({', '.join(differences)}): not bit-identical from here.",
                level="warning",
                differences=differences,
            )
        return restored

    def save(self, policy: Policy, state: TrainState, name: str) -> Checkpoint:
        """Files first, durable and renamed; then the fenced row; then the old ones go.

        Raises:
            StorageError: nothing of it is left on the disk.
        """
        partial, final = self._folder / f"{name}.partial", self._folder / name
        try:
            self._files.remove_folder(partial)
            partial.mkdir(parents=True)
            digest = write_checkpoint(partial, policy, state)
            size = sum(path.stat().st_size for path in partial.iterdir())
            self._files.publish_folder(partial, final)
        except (
            Exception
        ) as error:  # safetensors and tokenizers pass on what the system said as text of their own
            with contextlib.suppress(OSError):
                self._files.remove_folder(partial)
            if (refused := storage_error(error)) is not None:
                raise refused from error
            raise
        row = self._store.record_checkpoint(
            self._job.id,
            self._job.attempt,
            name=name,
            step=state.step,
            path=str(final.relative_to(self._artifacts)),
            sha256=digest,
            size=size,
        )
        self._retire_old()
        return row

    def _retire_old(self) -> None:
        saved = self._store.list_checkpoints(self._job.id)
        steps = [c for c in saved if c.name != FINAL and not c.pinned]
        self._drop(steps[: -self._job.ppo.checkpoint.keep_last], also_pinned=False)

    def _drop(self, checkpoints: list[Checkpoint], *, also_pinned: bool = True) -> None:
        """The rows first: what is listed is there."""
        if not checkpoints:
            return
        names = [c.name for c in checkpoints]
        dropped = self._store.drop_checkpoints(
            self._job.id, self._job.attempt, names, also_pinned=also_pinned
        )
        for checkpoint in (c for c in checkpoints if c.name in dropped):
            with contextlib.suppress(OSError):  # `remove_leftovers` tries again
                self._files.remove_folder(self.folder(checkpoint.path))

    def _event(self, type_: str, message: str, *, level: str = "info", **data: Any) -> None:
        event = NewEvent(type=type_, message=message, level=level, data=data)
        self._store.add_event(self._job.id, self._job.attempt, event)
