"""What clients delete in a random history of jobs, and the notes of folders that are to go."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from jobs.errors import CheckpointInUse, CheckpointNotFound, IllegalTransition, JobInUse, JobNotFound
from tests.faults.model_actors import LateReaper, Save
from tests.faults.model_job import TERMINAL, ModelJob

KEPT_S = 60.0  # a note, at least


class Deletions:
    """Of jobs, and of checkpoints; what is deleted stays known as it was, for whoever comes late."""

    store: LateReaper
    now: float
    jobs: dict[str, ModelJob]
    frozen: dict[str, Any]  # ended jobs as they were then
    fired: Counter[str]
    saves: Callable[[], list[Save]]

    def __init__(self) -> None:
        super().__init__()
        self.gone: dict[str, ModelJob] = {}
        self.notes: dict[str, float] = {}  # folders: when they were deleted

    def model(self, job_id: str) -> ModelJob:
        """Also of a job that was deleted: it has ended, so nothing can be done to it any more."""
        return self.jobs.get(job_id) or self.gone[job_id]

    @property
    def ended(self) -> list[str]:
        """Jobs that may be deleted, unless others need them."""
        return [job_id for job_id, job in self.jobs.items() if job.row["status"] in TERMINAL]

    @property
    def saved(self) -> list[Save]:
        """What a client may want to delete."""
        return self.saves()

    def _needed(self) -> set[tuple[str, str]]:
        """Checkpoints (job, name) that a job which has not ended began with."""
        live = [job for job in self.jobs.values() if job.row["status"] not in TERMINAL]
        return {(job.start.job_id, job.start.name) for job in live if job.start}

    def delete_job(self, data: st.DataObject) -> None:
        """Mostly one that has ended."""
        some = self.ended * 3 + sorted(self.jobs)
        job_id = data.draw(st.sampled_from(some), label="job")
        owner = data.draw(st.sampled_from(["me", "you"]), label="owner")
        job, needed = self.jobs[job_id], any(job_id == used for used, _ in self._needed())
        try:
            self.store.delete_job(job_id, owner)
        except JobNotFound:
            assert owner != job.owner
            self.fired["a stranger's deletion"] += 1
            return
        except IllegalTransition:
            assert job_id not in self.ended
            self.fired["deletion refused"] += 1
            return
        except JobInUse:
            assert needed, "nobody needs it"
            self.fired["kept for another"] += 1
            return
        assert owner == job.owner, "a stranger has deleted it"
        assert job_id in self.ended, "it was deleted before its end"
        assert not needed, "another job goes on from it"
        self.fired["job deleted"] += 1
        self.gone[job_id] = self.jobs.pop(job_id)
        self._noted(job_id)
        self.frozen.pop(job_id, None)

    def delete_save(self, data: st.DataObject) -> None:
        """Of any job, in any state."""
        save = data.draw(st.sampled_from(self.saved), label="save")
        owner = data.draw(st.sampled_from(["me", "you"]), label="owner")
        job, needed = self.jobs[save.job_id], (save.job_id, save.name) in self._needed()
        row = self.store.get_checkpoint(save.job_id, save.name)
        assert row is not None
        try:
            self.store.delete_checkpoint(row.id, owner)
        except CheckpointNotFound:
            assert owner != job.owner
            return
        except IllegalTransition:
            assert save.job_id not in self.ended
            self.fired["save kept to go on from"] += 1
            return
        except CheckpointInUse:
            assert needed, "nobody needs it"
            self.fired["save kept for another"] += 1
            return
        assert owner == job.owner, "a stranger has deleted it"
        assert save.job_id in self.ended, "a job that may go on has lost a save"
        assert not needed, "another job goes on from it"
        self.fired["save deleted"] += 1
        del job.checkpoints[save.name]
        job.pinned.discard(save.name)
        self._noted(row.path)
        left = self.frozen[save.job_id]["checkpoints"]
        self.frozen[save.job_id]["checkpoints"] = [one for one in left if one[0] != save.name]

    def _noted(self, path: str) -> None:
        self.notes[path] = self.now
        assert set(self.store.deleted_folders()) == set(self.notes), (
            "what is to go, and nothing that is there"
        )

    def sweep(self, data: st.DataObject) -> None:
        """The folders are gone; young notes stay, for somebody may still write there."""
        paths = data.draw(st.lists(st.sampled_from(sorted(self.notes)), unique=True), label="swept")
        self.store.forget_deleted(paths, older_than_s=KEPT_S)
        for path in paths:
            if self.notes[path] < self.now - KEPT_S:
                del self.notes[path]
                self.fired["note forgotten"] += 1
        assert set(self.store.deleted_folders()) == set(self.notes)
