"""What a child prints, in a file that cannot grow without end."""

import contextlib
import os
import threading
from pathlib import Path

import pytest

from jobs.attempt_log import head_of
from worker.child_log import TAIL_LINES, ChildLog


def write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def printed(file: Path, content: bytes, *, file_bytes: int) -> ChildLog:
    """A log after a child has printed `content` and ended, while a descendant still holds the pipe."""
    log = ChildLog(file, file_bytes=file_bytes)
    child = os.dup(log.child_end)
    log.start()
    write_all(child, content)
    log.finish()
    os.close(child)
    return log


def test_little_is_kept_whole_and_attempts_follow_each_other(tmp_path: Path) -> None:
    for line in (b"one\n", b"two\n"):
        log = printed(tmp_path / "log.txt", line, file_bytes=1000)
    assert (tmp_path / "log.txt").read_bytes() == b"one\ntwo\n"
    assert log.tail() == ("two",)


def test_of_much_the_end_is_kept(tmp_path: Path) -> None:
    content = b"".join(b"line %07d\n" % n for n in range(1_000_000))  # 13 MB through a file of 100 kB
    log = printed(tmp_path / "log.txt", content, file_bytes=100_000)
    kept = (tmp_path / "log.txt").read_bytes()
    assert len(kept) <= 100_000
    head = head_of(kept)
    assert content[head.left_out :] == kept[head.length :]  # the line says what was there before
    assert head.left_out > 0
    assert log.tail() == tuple(f"line {n:07d}" for n in range(1_000_000 - TAIL_LINES, 1_000_000))


def test_a_full_disk_costs_the_log_and_not_the_child(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = printed(tmp_path / "log.txt", b"x" * 200_000 + b"\nthe end\n", file_bytes=1000)
    assert log.tail()[-1] == "the end"


def test_a_descendant_that_prints_for_ever_does_not_keep_the_supervisor(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "log.txt", file_bytes=1000)
    descendant, enough = os.dup(log.child_end), threading.Event()
    log.start()

    def chatter() -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more
            while not enough.is_set():
                os.write(descendant, b"still here\n" * 1000)

    thread = threading.Thread(target=chatter)
    thread.start()
    log.finish()  # returns
    enough.set()
    thread.join()
    os.close(descendant)
