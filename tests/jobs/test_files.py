"""LocalFiles on a real disk."""

import os
from pathlib import Path

import pytest

from jobs.files import LocalFiles


def folder(path: Path, **contents: str) -> Path:
    (path / "below").mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_text(content)
    (path / "below" / "deep").write_text("deep")
    return path


def listing(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def test_publish_replaces_the_whole_folder(tmp_path: Path) -> None:
    files, final = LocalFiles(), tmp_path / "step-1"
    files.publish_folder(folder(tmp_path / "a.partial", old="1", both="1"), final)
    assert listing(tmp_path) == {"step-1/below/deep": "deep", "step-1/both": "1", "step-1/old": "1"}
    files.publish_folder(folder(tmp_path / "b.partial", both="2"), final)
    assert listing(tmp_path) == {"step-1/below/deep": "deep", "step-1/both": "2"}


def test_everything_is_on_the_disk_before_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    final, real = tmp_path / "final", os.fsync

    def spy(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((os.path.relpath(path, tmp_path), final.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    LocalFiles().publish_folder(folder(tmp_path / "p", one="1"), final)
    before = {path for path, visible in synced if not visible}
    assert before == {"p", "p/one", "p/below", "p/below/deep"}
    # The name's own folder, and those above it that the run may just have made: attempt, job, artifacts, data.
    assert [path for path, visible in synced if visible] == [".", "..", "../..", "../../.."]


def test_a_leftover_of_an_interrupted_replacement_does_not_stop_the_next(tmp_path: Path) -> None:
    folder(tmp_path / ".final.replaced", stale="1")
    final = folder(tmp_path / "final", old="1")
    LocalFiles().publish_folder(folder(tmp_path / "p", new="1"), final)
    assert listing(tmp_path) == {"final/below/deep": "deep", "final/new": "1"}


def test_remove(tmp_path: Path) -> None:
    LocalFiles().remove_folder(folder(tmp_path / "x", a="1"))
    LocalFiles().remove_folder(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_kept_is_gone_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.readlink(f"/proc/self/fd/{d}")))
    kept = folder(tmp_path / "kept", a="1")
    folder(tmp_path / "other", a="1")
    (tmp_path / "log").write_text("x")
    for _ in range(2):  # a second time in case who came first died before the fsync
        LocalFiles().keep_only(tmp_path, {kept})
        assert listing(tmp_path) == {"kept/a": "1", "kept/below/deep": "deep", "log": "x"}
        assert synced.pop() == str(tmp_path)
