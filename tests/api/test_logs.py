"""A job's log over HTTP: pages that follow a file which grows, is cut, or is not there."""

import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.services import logs
from jobs.attempt_log import log_path
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from tests.api.acting import claimed, create
from worker.child_log import ChildLog


@pytest.fixture
def job_id(client: TestClient, spec: dict[str, Any]) -> str:
    job_id: str = create(client, spec)["id"]
    return job_id


@pytest.fixture
def file(settings: Settings, job_id: str) -> Path:
    """Of attempt 1."""
    file = settings.artifacts / log_path(job_id, 1)
    file.parent.mkdir(parents=True)
    return file


def follow(client: TestClient, job_id: str, **query: Any) -> tuple[list[str], str | None]:
    """Texts page by page until nothing follows, and where to go on."""
    texts: list[str] = []
    while True:
        page = client.get(f"/v1/jobs/{job_id}/logs", params=query).json()
        texts += [line["text"] for line in page["data"]]
        cursor: str | None = page["next_cursor"]
        if not page["has_more"]:
            return texts, cursor
        query = query | {"after": cursor}


def test_a_log_is_read_in_pages_and_followed(
    client: TestClient, store: SqlStore, job_id: str, file: Path
) -> None:
    assert follow(client, job_id) == ([], None)  # nobody has claimed it
    attempt = claimed(store, job_id).attempt
    assert follow(client, job_id) == ([], None)
    file.write_bytes(b"one\ntwo\x1b[31m\r\n\n\xe2\x82\xac \xe2\x82")
    lines, cursor = follow(client, job_id, limit=1)
    assert lines == ["one", "two\x1b[31m\r", ""]  # a line that is not complete waits
    with file.open("ab") as more:
        more.write(b"\xac done\nlast")
    lines, cursor = follow(client, job_id, after=cursor)
    assert lines == ["€ € done"]
    store.hand_back(job_id, attempt, reason="lost", crashed=True)
    claimed(store, job_id)  # attempt 2 has no log yet
    lines, cursor = follow(client, job_id, after=cursor)
    assert (lines, cursor) == (["last"], f"1.{file.stat().st_size}")
    second = file.parents[1] / "2" / "log.txt"
    second.parent.mkdir()
    second.write_bytes(b"again\n")
    assert follow(client, job_id, after=cursor) == (["again"], "2.6")
    assert follow(client, job_id, attempt=2) == (["again"], "2.6")
    assert follow(client, job_id, attempt=3) == ([], None)
    page = client.get(f"/v1/jobs/{job_id}/logs", params={"limit": 2})
    assert page.headers["link"] == f'</v1/jobs/{job_id}/logs?limit=2&after=1.14>; rel="next"'
    assert page.json()["data"][1] == {"object": "job.log", "attempt": 1, "offset": 4, "text": "two\x1b[31m\r"}


def test_the_end_and_the_whole(client: TestClient, store: SqlStore, job_id: str, file: Path) -> None:
    claimed(store, job_id)
    url = f"/v1/jobs/{job_id}/logs"
    file.write_bytes(b"".join(b"line %d\n" % n for n in range(1000)))
    page = client.get(url, params={"tail": 2}).json()
    assert [line["text"] for line in page["data"]] == ["line 998", "line 999"]
    assert page["next_cursor"] == f"1.{file.stat().st_size}"
    plain = client.get(url, headers={"Accept": "text/plain"})
    assert plain.content == file.read_bytes()
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert plain.headers["x-content-type-options"] == "nosniff"
    assert plain.headers["content-disposition"] == f'attachment; filename="{job_id}.log"'
    for bad in ("x", "1", "1.-2", "1.2.3", "9999999999.1"):
        assert client.get(url, params={"after": bad}).status_code == 400


def test_a_cursor_means_the_same_when_the_middle_was_given_up(
    client: TestClient, store: SqlStore, job_id: str, file: Path
) -> None:
    """The child prints 20,000 lines through a file of 10 kB; a client that polls sees each line at most once."""
    claimed(store, job_id)
    log = ChildLog(file, file_bytes=10_000)
    child = os.dup(log.child_end)
    log.start()
    seen: list[dict[str, Any]] = []
    cursor = "1.0"
    for n in range(20_000):
        os.write(child, b"line %07d\n" % n)
        if n % 1000 == 999:
            page = client.get(f"/v1/jobs/{job_id}/logs", params={"after": cursor, "limit": 1000}).json()
            seen, cursor = seen + page["data"], page["next_cursor"]
    os.close(child)
    log.finish()
    while (page := client.get(f"/v1/jobs/{job_id}/logs", params={"after": cursor, "limit": 1000}).json())[
        "data"
    ]:
        seen, cursor = seen + page["data"], page["next_cursor"]
    whole = [line for line in seen if len(line["text"]) == 12]
    assert all(line["text"] == f"line {line['offset'] // 13:07d}" for line in whole)
    offsets = [line["offset"] for line in seen]
    assert offsets == sorted(set(offsets))
    assert seen[-1]["offset"] == 19_999 * 13
    assert cursor == f"1.{20_000 * 13}"


@pytest.mark.parametrize("printed", ["x" * 40, "€" * 20, "\x80" * 30])
def test_a_long_line_comes_in_pieces_that_cut_no_character(
    client: TestClient,
    store: SqlStore,
    job_id: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    printed: str,
) -> None:
    monkeypatch.setattr(logs, "LINE_BYTES", 10)
    monkeypatch.setattr(logs, "PAGE_BYTES", 25)
    attempt = claimed(store, job_id).attempt
    file.write_text(printed + "\n" + "end", encoding="utf-8")
    store.hand_back(job_id, attempt, reason="lost")
    texts, _ = follow(client, job_id)
    assert "".join(texts) == printed + "end"
    assert max(len(text.encode()) for text in texts) <= 10


def test_a_link_in_place_of_a_log_is_not_followed(
    client: TestClient, store: SqlStore, job_id: str, file: Path, tmp_path: Path
) -> None:
    claimed(store, job_id)
    (tmp_path / "secret").write_text("canary\n")
    file.symlink_to(tmp_path / "secret")
    assert follow(client, job_id) == ([], None)
    file.unlink()
    os.mkfifo(file)  # nor does a pipe keep the request waiting
    assert follow(client, job_id) == ([], None)
    file.parent.joinpath("log.txt").unlink()
    file.parent.rmdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "log.txt").write_text("canary\n")
    file.parent.symlink_to(tmp_path / "outside")
    assert follow(client, job_id) == ([], None)
    assert client.get(f"/v1/jobs/{job_id}/logs", headers={"Accept": "text/plain"}).content == b""
