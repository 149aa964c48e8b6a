"""What was checked is what is opened: a link that came since is refused, wherever on the way it is."""

import os
from pathlib import Path

import pytest

from jobs.real_paths import has_way_out, open_real, real_path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "data.jsonl").write_text("secret")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "data.jsonl").write_text("ours")
    return root


def test_a_file_is_opened_by_its_real_path(root: Path) -> None:
    with open_real(str(root / "a" / "b" / "data.jsonl")) as file:
        assert file.read() == b"ours"


@pytest.mark.parametrize("swapped", ["a/b/data.jsonl", "a/b", "a"])
def test_a_link_that_was_put_there_since_is_not_followed(root: Path, secret: Path, swapped: str) -> None:
    path = root / swapped
    path.rename(root / "away")
    path.symlink_to(secret / "data.jsonl" if path.suffix else secret)
    for name in ("a/b/data.jsonl", "a/data.jsonl"):
        with pytest.raises(OSError, match=r"symbolic link|Not a directory|No such file"):
            open_real(str(root / name))


def test_only_regular_files_are_opened(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for name in ("pipe", "a", "nothing"):
        with pytest.raises(OSError, match=r"regular|No such file"):
            open_real(str(root / name))


def test_links_of_a_folder_may_stay_below_a_root(root: Path, secret: Path) -> None:
    (root / "a" / "blob").symlink_to("b/data.jsonl")  # as in the hub's cache
    assert not has_way_out(root / "a", [root])
    (root / "a" / "loop").symlink_to("loop")
    assert not has_way_out(root / "a", [root])
    (root / "a" / "out").symlink_to(secret / "data.jsonl")
    assert has_way_out(root / "a", [root])
    assert not has_way_out(root / "a", [root, secret])


def test_a_path_that_cannot_be_followed_is_none() -> None:
    """As root may still read it, either answer is right: never an error."""
    assert real_path("/proc/1/root/etc") in (None, Path("/etc"), Path("/proc/1/root/etc"))
