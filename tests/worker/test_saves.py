"""A training run and its checkpoints: whatever happens to the files, it goes on from the last good one."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from jobs.files import LocalFiles
from jobs.migrate import upgrade
from jobs.settings import Settings
from jobs.spec import Job
from jobs.sql_store import SqlStore
from jobs.states import Status
from rlhf_core import checkpoint as checkpoints
from rlhf_core.errors import CheckpointError
from tests.faults.bench import STEPS, spec
from worker.failures import EXIT_STOPPED, DiskFull, StorageError
from worker.run import Stop, TrainingRun
from worker.scorer.sources import AllowedSources

JOB = "job_1"


class Place:
    """One job on a real store, attempts at it in this process."""

    def __init__(self, folder: Path, model: Path) -> None:
        url = f"sqlite:///{folder}/kleash.db"
        upgrade(url)
        self.store, self.model = SqlStore(url), model
        self.settings = Settings(data=folder, model_roots=[model])

    def create(
        self,
        job_id: str = JOB,
        *,
        keep_last: int = 3,
        controller: Any = None,
        reward: Any = None,
        best_of_n: int | None = None,
        **resolved: Any,
    ) -> None:
        job = spec(
            {"lora": {"rank": 2}},
            controller=controller,
            checkpoint={"keep_last": keep_last},
            reward=reward,
            best_of_n=best_of_n,
        )
        self.store.create_job(job_id, "me", job, {"model": {"path": str(self.model)}, **resolved})

    def claim(self, job_id: str = JOB) -> Job:
        job = self.store.claim(job_id, self.store.get_job(job_id).epoch, worker="w", lease_s=600)
        assert job is not None
        self.folder(job).mkdir(parents=True, exist_ok=True)
        return job

    def folder(self, job: Job) -> Path:
        return self.settings.artifacts / job.id / str(job.attempt)

    def run_of(self, job: Job) -> TrainingRun:
        sources = AllowedSources(self.settings)
        return TrainingRun(self.store, job, self.folder(job), "cpu", sources=sources)

    def run(self, job_id: str = JOB, *, until: int | None = None) -> int:
        """An attempt to the end, or stopped by SIGTERM as soon as step `until` is recorded, and handed back."""
        job, stop = self.claim(job_id), Stop()
        run = self.run_of(job)
        record = run._record

        def record_and_stop(step: Any) -> None:
            record(step)
            if step.step == until:
                stop.request(15, None)

        run._record = record_and_stop  # type: ignore[method-assign]
        code = run.run(stop)
        if code == EXIT_STOPPED:
            self.store.hand_back(job_id, job.attempt, reason="stopped")
        return code

    def events(self, type_: str, job_id: str = JOB) -> list[Any]:
        return [e for e in self.store.list_events(job_id, limit=1000) if e.type == type_]

    def paths(self, job_id: str = JOB) -> dict[str, Path]:
        return {c.name: self.settings.artifacts / c.path for c in self.store.list_checkpoints(job_id)}

    def final(self, job_id: str = JOB) -> dict[str, Any]:
        """All of the last state but Python's generator, from which beartype draws what it checks."""
        folder = self.paths(job_id)["final"]
        numbers = json.loads((folder / "trainer.json").read_text())
        del numbers["rng"]["python"]
        names = ("adapter_model.safetensors", "trainer.safetensors")
        return {"numbers": numbers} | {name: (folder / name).read_bytes() for name in names}

    def assert_sound(self, job_id: str = JOB) -> None:
        """Succeeded; every listed checkpoint verifies; nothing else is left."""
        assert self.store.get_job(job_id).status is Status.SUCCEEDED
        for row in self.store.list_checkpoints(job_id):
            checkpoints.verify_checkpoint(self.settings.artifacts / row.path, row.sha256)
        left = {p.resolve() for p in (self.settings.artifacts / job_id).glob("*/*") if p.is_dir()}
        assert left == {path.resolve() for path in self.paths(job_id).values()}


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Iterator[Place]:
    place = Place(tmp_path, tiny_model)
    yield place
    place.store.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Any]:
    place = Place(tmp_path_factory.mktemp("undisturbed"), tiny_model)
    place.create()
    assert place.run() == 0
    place.assert_sound()
    place.store.close()
    return place.final()


def truncate(path: Path, _: Path) -> None:
    file = path / "trainer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(path: Path, _: Path) -> None:
    content = bytearray((path / "adapter_model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "adapter_model.safetensors").write_bytes(content)


def delete(path: Path, _: Path) -> None:
    (path / "trainer.json").unlink()


def swap(path: Path, _: Path) -> None:
    adapter, trainer = path / "adapter_model.safetensors", path / "trainer.safetensors"
    adapter.rename(path / "aside")
    trainer.rename(adapter)
    (path / "aside").rename(trainer)


def another_manifest(path: Path, earlier: Path) -> None:
    shutil.copy(earlier / "manifest.json", path / "manifest.json")


def another_checkpoint(path: Path, earlier: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(earlier, path)


def no_folder(path: Path, _: Path) -> None:
    shutil.rmtree(path)


def a_link_to_itself(path: Path, _: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("manifest.json")


HARMS = [truncate, flip, delete, swap, another_manifest, another_checkpoint, no_folder, a_link_to_itself]


def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(
    place: Place, undisturbed: dict[str, Any]
) -> None:
    """Step 3 is saved, damaged, and made again from step 2: once for every kind of damage."""
    place.create()
    assert place.run(until=3) == EXIT_STOPPED
    for count, harm in enumerate(HARMS, start=1):
        harm(place.paths()["step-3"], place.paths()["step-2"])
        assert place.run(until=3) == EXIT_STOPPED
        events = place.events("checkpoint.corrupt")
        assert len(events) == count, harm.__name__
        assert (events[-1].level, events[-1].data) == ("warning", {"name": "step-3", "step": 3})
        assert place.events("job.resumed_from")[-1].data == {"step": 2}
    assert place.run() == 0
    assert place.final() == undisturbed
    place.assert_sound()


def test_without_any_good_checkpoint_it_starts_again(place: Place, undisturbed: dict[str, Any]) -> None:
    place.create()
    place.run(until=2)
    for path in place.paths().values():
        flip(path, path)
    assert place.run() == 0
    assert [e.data["name"] for e in place.events("checkpoint.corrupt")] == ["step-2", "step-1"]
    assert place.final() == undisturbed
    place.assert_sound()


def test_what_an_earlier_attempt_left_is_removed(place: Place, undisturbed: dict[str, Any]) -> None:
    place.create()
    place.run(until=2)
    attempt = place.paths()["step-2"].parent
    shutil.copytree(attempt / "step-2", attempt / "step-3.partial")
    shutil.copytree(attempt / "step-2", attempt / "step-3")  # renamed, but its row was never written
    (attempt / ".step-1.replaced").mkdir()
    assert place.run() == 0
    assert place.final() == undisturbed
    place.assert_sound()


def test_a_final_whose_success_was_never_written_is_used(
    place: Place, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create()
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_succeed", lambda *_: EXIT_STOPPED)
        place.run()
    place.store.hand_back(JOB, 1, reason="lost")
    before = place.paths()["final"]
    monkeypatch.setattr("worker.run.train", None)  # whoever trains again fails
    assert place.run() == 0
    assert place.paths()["final"] == before
    result = place.store.get_job(JOB).result
    assert result is not None
    final = place.store.get_checkpoint(JOB, "final")
    assert final is not None
    assert result["checkpoint_id"] == final.id
    assert "path" not in result, "clients have no use for a folder of ours"
    assert result["evaluation"]["reward_difference"]["n"] == 2
    assert place.final() == undisturbed
    place.assert_sound()


def test_only_the_last_checkpoints_and_the_final_are_kept(place: Place) -> None:
    place.create(keep_last=2)
    assert place.run() == 0
    assert list(place.paths()) == [f"step-{STEPS - 2}", f"step-{STEPS - 1}", "final"]
    place.assert_sound()


def test_another_environment_is_said_and_not_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create()
    place.run(until=2)
    here = checkpoints.environment()
    assert {"cpu", "cpu_capability", "threads", "packages", "machine", "device"} <= set(here)
    monkeypatch.setattr(checkpoints, "environment", lambda: here | {"threads": 99, "cpu": "Abacus"})
    assert place.run() == 0
    (event,) = place.events("checkpoint.other_environment")
    assert event.data == {"differences": {"threads": [here["threads"], 99], "cpu": [here["cpu"], "Abacus"]}}


def test_the_data_folder_may_move(tmp_path: Path, tiny_model: Path, undisturbed: dict[str, Any]) -> None:
    (tmp_path / "old").mkdir()
    place = Place(tmp_path / "old", tiny_model)
    place.create()
    place.run(until=2)
    place.store.close()
    (tmp_path / "old").rename(tmp_path / "new")
    place = Place(tmp_path / "new", tiny_model)
    assert place.run() == 0
    assert [event.data["step"] for event in place.events("job.resumed_from")] == [2]
    assert place.final() == undisturbed


def resume_from(place: Place, name: str) -> dict[str, Any]:
    row = place.store.get_checkpoint(JOB, name)
    assert row is not None
    same = {"path": row.path, "sha256": row.sha256, "step": row.step, "job_id": JOB, "name": name}
    return same | {"same_kl": True, "same_evaluation": True}


@pytest.mark.parametrize("name", ["step-2", "final"])
def test_a_job_goes_on_from_another_jobs_checkpoint(
    place: Place, undisturbed: dict[str, Any], name: str
) -> None:
    place.create()
    place.run()
    place.create("job_2", resume_from=resume_from(place, name))
    assert place.run("job_2") == 0
    assert place.final("job_2") == undisturbed
    assert place.paths("job_2")["final"] != place.paths()["final"]
    (event,) = place.events("job.resumed_from", "job_2")
    assert event.data["checkpoint"] == f"{JOB}@{name}"
    place.assert_sound("job_2")


def test_beta_starts_as_configured_where_the_kl_config_is_another(place: Place) -> None:
    place.create()
    place.run()
    start = resume_from(place, "step-2") | {"same_kl": False}
    place.create("job_2", controller={"kind": "fixed"}, resume_from=start)
    place.run("job_2")
    betas = {job: [row.metrics["kl/beta"] for row in place.store.list_metrics(job)] for job in (JOB, "job_2")}
    assert betas["job_2"] == [0.1, 0.1] != betas[JOB][2:]


def evaluated(place: Place, job_id: str) -> tuple[list[int], dict[str, Any]]:
    """Where held-out completions stand, and the evaluation of the result."""
    result = place.store.get_job(job_id).result
    assert result is not None
    samples = place.store.list_samples(job_id, kind="eval", limit=100)
    return sorted({sample.step for sample in samples}), result["evaluation"]


def test_the_evaluation_before_training_is_made_again_where_it_measured_something_else(place: Place) -> None:
    """Of the reference, as a job from the start makes it, here with another reward."""
    longer = {"kind": "length", "target_tokens": 2}
    place.create()
    place.run()
    place.create(
        "job_2", reward=longer, resume_from=resume_from(place, "step-2") | {"same_evaluation": False}
    )
    place.run("job_2")
    place.create("job_3", reward=longer)
    place.run("job_3")
    (_, first), (steps, again), (_, fresh) = (evaluated(place, job) for job in (JOB, "job_2", "job_3"))
    assert steps == [0, 4]
    assert again["before"] == fresh["before"] != first["before"]


def test_best_of_n_is_told_once_by_every_job_that_has_it(place: Place) -> None:
    """Measured by the first; handed on to the second; measured again where another number is asked for."""
    place.create(best_of_n=2)
    place.run(until=2)
    place.run()
    for job_id, n in (("job_2", 2), ("job_3", 3)):
        place.create(job_id, best_of_n=n, resume_from=resume_from(place, "step-2"))
        place.run(job_id)
    points = {}
    for job_id, expected in ((JOB, [0, 2, 4]), ("job_2", [4]), ("job_3", [0, 4])):
        (event,) = place.events("job.best_of_n", job_id)
        steps, evaluation = evaluated(place, job_id)
        assert steps == expected
        points[job_id] = evaluation["best_of_n"]
        assert event.data["points"] == points[job_id]
    assert points["job_2"] == points[JOB]
    assert [point["n"] for point in points["job_3"]] == [1, 2, 3]


def test_its_own_checkpoint_comes_before_the_one_it_started_from(
    place: Place, undisturbed: dict[str, Any]
) -> None:
    place.create()
    place.run()
    place.create("job_2", resume_from=resume_from(place, "step-1"))
    place.run("job_2", until=3)
    place.run("job_2")
    assert [e.data["step"] for e in place.events("job.resumed_from", "job_2")] == [1, 3]
    assert place.final("job_2") == undisturbed


def test_a_damaged_start_is_refused(place: Place) -> None:
    """Starting from the base instead would be another experiment under the same name."""
    place.create()
    place.run()
    flip(place.paths()["step-2"], Path())
    place.create("job_2", resume_from=resume_from(place, "step-2"))
    with pytest.raises(CheckpointError, match="adapter_model"):
        place.run("job_2")


# --- disks ---


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """`mounted(*options)` is a tmpfs of its own."""
    folders: list[Path] = []

    def mount(*options: str) -> Path:
        folder = tmp_path / f"disk-{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:  # lazily: weights that were read are still mapped
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def on_disk(place: Place, disk: Path) -> None:
    place.settings.artifacts.symlink_to(disk, target_is_directory=True)


def test_a_full_disk_ends_the_job_and_leaves_no_half_file(
    place: Place, mounted: Callable[..., Path], undisturbed: dict[str, Any]
) -> None:
    """Every place in the save at which the space can run out, a few kilobytes apart."""
    size = 2**20
    disk = mounted("-o", f"size={size}")
    on_disk(place, disk)
    place.create()
    place.run(until=1)
    whole = sum(path.stat().st_size for path in place.paths()["step-1"].iterdir())
    ballast = disk / "ballast"
    for room in range(0, whole, whole // 5):
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        ballast.write_bytes(b"x" * (free - room))
        with pytest.raises(DiskFull, match="could not be written"):
            place.run()
        place.store.hand_back(JOB, place.store.get_job(JOB).attempt, reason="full")
        assert list(place.paths()) == ["step-1"]
        assert not list(disk.glob("*/*/*.partial"))
        assert place.store.get_job(JOB).status is Status.QUEUED  # the database is elsewhere, and well
        ballast.unlink()
    with safe_open(place.paths()["step-1"] / "trainer.safetensors", "pt") as tensors:
        assert tensors.keys()
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    assert place.run() == 0
    assert place.final() == undisturbed
    place.assert_sound()


def test_a_read_only_folder_is_named_as_such(place: Place, mounted: Callable[..., Path]) -> None:
    disk = mounted("-o", "size=8m")
    on_disk(place, disk)
    place.create()
    place.run(until=1)
    job = place.claim()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(StorageError, match="Read-only") as caught:
        place.run_of(job).run(Stop())
    assert caught.value.code == "storage_failed"


def test_replacing_a_folder_never_loses_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial, final = tmp_path / "a.partial", tmp_path / "a"
    for folder, text in ((partial, "new"), (final, "old")):
        folder.mkdir()
        (folder / "file").write_text(text)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == partial:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space"):
        LocalFiles().publish_folder(partial, final)
    assert (final / "file").read_text() == "old"
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == '["a", "a.partial"]'
