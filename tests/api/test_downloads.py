"""Files over HTTP: one range is a slice, a tag is the content's, and a file that is cut is no answer."""

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from api.confined import open_below
from api.downloads import Part, bytes_part, content, requested
from jobs.settings import Settings
from jobs.spec import Checkpoint
from jobs.sql_store import SqlStore
from jobs.states import Status
from tests.api.acting import claimed, create

DATA = bytes(range(256)) * 9


@given(
    parts=st.lists(st.binary(max_size=40), max_size=5),
    first=st.none() | st.integers(0, 300),
    last=st.none() | st.integers(0, 300),
)
@example(parts=[b""], first=0, last=None)
@example(parts=[b"abc"], first=None, last=0)
@example(parts=[b"abc"], first=None, last=9)
@example(parts=[b"abc"], first=2, last=10**18 - 1)
def test_a_range_is_a_slice(parts: list[bytes], first: int | None, last: int | None) -> None:
    data = b"".join(parts)
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    found = requested(header, len(data))
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert found is None  # no range at all: ignored
        return
    if first is None:
        wanted = data[max(0, len(data) - (last or 0)) :]
    else:
        wanted = data[first:] if last is None else data[first : last + 1]
    assert found is not None
    assert len(found) == len(wanted)
    pieces = content([bytes_part(part) for part in parts], found.start, len(found))
    assert b"".join(pieces) == wanted


@pytest.mark.parametrize(
    "header",
    [
        "bytes=0-1,3-4",
        "bytes=" + "0-," * 10_000,
        "bytes=0-0" * 9,
        "items=0-1",
        "bytes 0-1",
        "bytes=a-b",
        "bytes=１-２",
        f"bytes={'9' * 5000}-",
        "bytes=-",
        "bytes=--1",
        "bytes=5-4",
        "",
        "bytes=0-1;x",
        "bytes=0 -1",
    ],
)
def test_every_other_header_is_ignored(header: str) -> None:
    assert requested(header, 10) is None


@pytest.fixture
def save(
    client: TestClient, store: SqlStore, settings: Settings, spec: dict[str, Any]
) -> Callable[[dict[str, bytes]], Checkpoint]:
    """A checkpoint that has these files, as a training process saves them."""

    def write(files: dict[str, bytes]) -> Checkpoint:
        job = claimed(store, create(client, spec)["id"])
        path = f"{job.id}/1/step-1"
        folder = settings.artifacts / path
        folder.mkdir(parents=True)
        listed = {}
        for name, data in files.items():
            (folder / name).write_bytes(data)
            listed[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest = orjson.dumps({"format": 1, "files": listed})
        (folder / "manifest.json").write_bytes(manifest)
        digest = hashlib.sha256(manifest).hexdigest()
        return store.record_checkpoint(job.id, 1, name="step-1", step=1, path=path, sha256=digest, size=9)

    return write


def test_a_file_of_a_checkpoint(client: TestClient, save: Callable[[dict[str, bytes]], Checkpoint]) -> None:
    checkpoint = save({"w.safetensors": DATA})
    shown = client.get(f"/v1/checkpoints/{checkpoint.id}").json()
    manifest, weights = shown["files"]
    assert (manifest["name"], manifest["sha256"]) == ("manifest.json", checkpoint.sha256)
    digest = hashlib.sha256(DATA)
    assert (weights["bytes"], weights["sha256"]) == (len(DATA), digest.hexdigest())
    url = weights["url"]

    whole = client.get(url)
    assert (whole.status_code, whole.content) == (200, DATA)
    etag = f'"sha256:{digest.hexdigest()}"'
    expected = {
        "etag": etag,
        "repr-digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
        "accept-ranges": "bytes",
        "content-length": str(len(DATA)),
        "content-type": "application/octet-stream",
        "content-disposition": 'attachment; filename="w.safetensors"',
        "x-content-type-options": "nosniff",
    }
    assert expected.items() <= dict(whole.headers).items()
    head = client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert expected.items() <= dict(head.headers).items()

    def got(**headers: str) -> tuple[int, bytes, str | None]:
        answer = client.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
        assert int(answer.headers.get("content-length", 0)) == len(answer.content)
        return answer.status_code, answer.content, answer.headers.get("content-range")

    assert got(Range="bytes=10-19") == (206, DATA[10:20], f"bytes 10-19/{len(DATA)}")
    assert got(Range="bytes=10-19", If_Range=etag) == (206, DATA[10:20], f"bytes 10-19/{len(DATA)}")
    assert got(Range="bytes=10-19", If_Range='"other"') == (200, DATA, None)
    assert got(Range="bytes=10-19", If_Range=f"W/{etag}") == (200, DATA, None)
    assert got(Range="bytes=0-0,2-2") == (200, DATA, None)
    assert got(Range="bytes=" + ",".join(["0-0"] * 10_000)) == (200, DATA, None)
    status, _, total = got(Range=f"bytes={len(DATA)}-")
    assert (status, total) == (416, f"bytes */{len(DATA)}")
    for known in (etag, f'W/{etag}, "x"', "*"):
        assert got(If_None_Match=known, Range="bytes=0-0") == (304, b"", None)
    assert client.head(url, headers={"Range": "bytes=1-2"}).status_code == 200


def test_a_checkpoint_as_a_tar_that_can_be_continued(
    client: TestClient, save: Callable[[dict[str, bytes]], Checkpoint]
) -> None:
    files = {"a.json": b"{}", "b.bin": DATA, "empty": b"", "block": b"x" * 512}
    checkpoint = save(files)
    url = client.get(f"/v1/checkpoints/{checkpoint.id}").json()["archive_url"]
    whole = client.get(url)
    assert (
        int(whole.headers["content-length"])
        == len(whole.content)
        == int(client.head(url).headers["content-length"])
    )
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as archive:
        folder = f"{checkpoint.job_id}-step-1"
        assert archive.getnames() == [f"{folder}/{name}" for name in ("manifest.json", *sorted(files))]
        for name, data in files.items():
            member = archive.extractfile(f"{folder}/{name}")
            assert member is not None
            assert member.read() == data
    tag = whole.headers["etag"]
    rest = client.get(url, headers={"Range": "bytes=700-", "If-Range": tag})
    assert (rest.status_code, rest.content) == (206, whole.content[700:])
    assert client.get(url, headers={"If-None-Match": tag}).status_code == 304


def test_everything_to_download_is_listed(
    client: TestClient, save: Callable[[dict[str, bytes]], Checkpoint], settings: Settings
) -> None:
    checkpoint = save({"a": b"a"})
    url = f"/v1/jobs/{checkpoint.job_id}/artifacts"
    (settings.artifacts / checkpoint.job_id / "1" / "log.txt").write_bytes(b"one\n")
    saved, log = client.get(url).json()["data"]
    assert (saved["kind"], saved["name"], saved["sha256"]) == ("checkpoint", "step-1", checkpoint.sha256)
    assert (log["kind"], log["name"], log["bytes"], log["sha256"]) == ("log", "attempt-1.log", 4, None)
    assert client.get(saved["url"]).headers["content-type"] == "application/x-tar"
    assert client.get(log["url"], headers={"Accept": "text/plain"}).content == b"one\n"
    assert client.get(f"/v1/jobs/job_{'0' * 32}/artifacts").status_code == 404


def test_what_is_not_there_as_it_was_saved_is_gone(
    client: TestClient, save: Callable[[dict[str, bytes]], Checkpoint], settings: Settings, tmp_path: Path
) -> None:
    """Nothing is opened that the manifest does not name, and no link leads out of the artifacts."""
    (tmp_path / "secret").write_bytes(b"canary")
    checkpoint = save({"a.bin": b"aaaaaa", "linked": b"canary", "../../x": b"", "gone": b"g"})
    folder, url = settings.artifacts / checkpoint.path, f"/v1/checkpoints/{checkpoint.id}/files"
    (folder / "linked").unlink()
    (folder / "linked").symlink_to(tmp_path / "secret")
    (folder / "gone").unlink()
    (folder / "unlisted").write_bytes(b"u")
    for name in (
        "linked",
        "gone",
        "unlisted",
        "..%2F..%2Fx",
        "a.bin%00",
        "%2Fetc%2Fpasswd",
    ):
        assert client.get(f"{url}/{name}").status_code == 404, name
    assert client.get(f"/v1/checkpoints/{checkpoint.id}/archive").json()["code"] == "artifact_gone"
    os.truncate(folder / "a.bin", 3)
    assert client.get(f"{url}/a.bin").json()["code"] == "artifact_gone"
    (folder / "manifest.json").write_text('{"files": {"a.bin": {"bytes": 3, "sha256": "00"}}}')
    assert client.get(f"{url}/a.bin").json()["code"] == "artifact_gone"
    assert client.get(f"/v1/checkpoints/{checkpoint.id}").json()["files"] is None
    for unknown in ("ckpt_" + "0" * 32, "x", "job_" + "0" * 32):
        assert client.get(f"/v1/checkpoints/{unknown}").json()["code"] == "not_found"


def test_a_file_that_is_cut_while_it_is_sent_ends_the_answer(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(3 << 20))
    pieces = content([Part(3 << 20, lambda: open_below(tmp_path, "f"))], 0, 3 << 20)
    assert len(next(pieces)) == 1 << 20
    os.truncate(tmp_path / "f", 1 << 20)
    with pytest.raises(OSError, match="was cut"):
        list(pieces)


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../a/f", "a//f", "a/./f", "a", "a/up/f", "a/fifo", "a/\x00"]
)
def test_only_plain_files_below_the_root_are_opened(tmp_path: Path, path: str) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "f").write_bytes(b"f")
    (tmp_path / "f").write_bytes(b"canary")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "root" / "a" / "fifo")
    with pytest.raises(OSError, match=r"not a|No such|Not a|symbolic"):
        open_below(tmp_path / "root", path)
    with closing(open_below(tmp_path / "root", "a/f")) as file:
        assert file.read() == b"f"


def test_a_pinned_checkpoint(
    client: TestClient, save: Callable[[dict[str, bytes]], Checkpoint], store: SqlStore, spec: dict[str, Any]
) -> None:
    checkpoint = save({"a": b"a"})
    url = f"/v1/checkpoints/{checkpoint.id}"
    assert client.patch(url, json={"pinned": True}).json()["pinned"] is True
    assert store.drop_checkpoints(checkpoint.job_id, 1, ["step-1"], also_pinned=False) == []
    assert client.patch(url, json={"pinned": False}).json()["pinned"] is False
    job = create(client, spec | {"resume_from": f"{checkpoint.job_id}@step-1"})
    refused = client.patch(url, json={"pinned": False})
    assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_in_use")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.patch(url, json={"pinned": False}).json()["pinned"] is False
    late = client.patch(url, json={"expires_at": "2035-01-31T12:00:00+01:00"}).json()
    assert (late["expires_at"], late["pinned"]) == ("2035-01-31T11:00:00.000Z", False)
    assert client.patch(url, json={"pinned": True}).json()["expires_at"] == late["expires_at"]
    assert client.patch(url, json={"expires_at": None}).json()["expires_at"] is None
    past, zoneless = {"expires_at": "2020-01-31T12:00:00Z"}, {"expires_at": "2035-01-31T12:00:00"}
    for body in ({}, {"pinned": "true"}, {"pinned": True, "x": 1}, {"pinned": None}, past, zoneless):
        assert client.patch(url, json=body).status_code == 422
    assert client.patch(f"/v1/checkpoints/ckpt_{'0' * 32}", json={"pinned": True}).status_code == 404


def test_a_deleted_checkpoint(
    client: TestClient, save: Callable[[dict[str, bytes]], Checkpoint], store: SqlStore, spec: dict[str, Any]
) -> None:
    checkpoint = save({"a": b"a"})
    url, name = f"/v1/checkpoints/{checkpoint.id}", f"{checkpoint.job_id}@step-1"
    refused = client.delete(url).json()
    assert (refused["status"], refused["code"]) == (409, "invalid_state")
    assert refused["context"]["status"] == "running"
    store.finish(checkpoint.job_id, 1, Status.SUCCEEDED)
    user = create(client, spec | {"resume_from": name})["id"]
    refused = client.delete(url).json()
    assert (refused["status"], refused["code"]) == (409, "checkpoint_in_use")
    client.post(f"/v1/jobs/{user}/cancel")
    gone = client.delete(url)
    assert (gone.status_code, gone.content) == (204, b"")
    for again in (client.delete(url), client.get(url), client.get(f"{url}/files/a")):
        assert (again.status_code, again.json()["code"]) == (404, "not_found")
    assert client.get(f"/v1/jobs/{checkpoint.job_id}/checkpoints").json()["data"] == []
    assert client.post("/v1/jobs", json=spec | {"resume_from": name}).json()["code"] == "unknown_model"
    last = store.list_audit()[-2].entry
    assert (last.operation, last.resource_id, last.status) == ("checkpoints_delete", checkpoint.id, 404)
