"""/v1/files: what was uploaded comes back, what is of no use is refused by its line, and each sees his own."""

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.lines import MAX_LINE_BYTES
from jobs.settings import Settings
from tests.api.test_bad_input import CANARY, refused

JSONL = {"Content-Type": "application/jsonl"}
PROMPTS = '{"prompt": "Once é", "n": [1]}\n\n"Twice"\r\n'.encode()
NOBODY = f"file_{0:032x}"
NewApp = Callable[[Settings], FastAPI]
NewKey = Callable[[], dict[str, str]]


def post(
    client: TestClient,
    content: Any = PROMPTS,
    *,
    purpose: str = "prompts",
    name: str = "p.jsonl",
    **headers: str,
) -> Any:
    return client.post(
        "/v1/files", params={"name": name, "purpose": purpose}, content=content, headers=JSONL | headers
    )


def stored(settings: Settings) -> list[str]:
    return sorted(path.name for path in settings.uploads.glob("*")) if settings.uploads.exists() else []


def test_what_was_uploaded_comes_back_until_it_is_deleted(client: TestClient, settings: Settings) -> None:
    answer = post(client, name='a "b"/é.jsonl')
    file = answer.json()
    sha256 = hashlib.sha256(PROMPTS).hexdigest()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/files/{file['id']}"
    assert {name: file[name] for name in ("object", "name", "purpose", "bytes", "lines", "sha256")} == {
        "object": "file",
        "name": 'a "b"/é.jsonl',
        "purpose": "prompts",
        "bytes": len(PROMPTS),
        "lines": 2,
        "sha256": sha256,
    }
    url = f"/v1/files/{file['id']}"
    assert client.get(url).json() == file
    content = client.get(f"{url}/content")
    assert content.content == PROMPTS
    for response in (content, client.head(f"{url}/content")):
        assert response.headers["etag"] == f'"{sha256}"'
        assert response.headers["content-length"] == str(len(PROMPTS))
        assert response.headers["content-type"] == "application/jsonl"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-disposition"] == (
            "attachment; filename*=UTF-8''a%20%22b%22%2F%C3%A9.jsonl"
        )
    same = client.get(f"{url}/content", headers={"If-None-Match": f'W/"x", "{sha256}"'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", f'"{sha256}"')
    again = post(client).json()
    assert again["sha256"] == sha256, "the same content twice is two files"
    assert stored(settings) == sorted([file["id"], again["id"]])
    assert client.delete(url).status_code == 204
    assert stored(settings) == [again["id"]]
    refused(client.get(url), 404, "not_found")
    refused(client.delete(url), 404, "not_found")


def test_pages_newest_first(client: TestClient) -> None:
    made = [post(client, b'"a"', purpose=purpose).json()["id"] for purpose in ("items", "prompts", "items")]
    first = client.get("/v1/files", params={"limit": 2})
    assert [file["id"] for file in first.json()["data"]] == made[:0:-1]
    rest = client.get(first.links["next"]["url"]).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (made[:1], False)
    items = client.get("/v1/files", params={"purpose": "items"}).json()["data"]
    assert [file["id"] for file in items] == made[::-2]
    refused(client.get("/v1/files", params={"after": CANARY}), 400, "invalid_cursor")
    for name in (CANARY, "file_", f"{NOBODY}0", "%00", "..%2f"):
        refused(client.get(f"/v1/files/{name}"), 404, "not_found")


BAD: dict[str, tuple[str, bytes, str]] = {
    "no JSON": ("prompts", b'"a"\n\nno %s\n', "line 3 is not JSON"),
    "not UTF-8": ("prompts", b'"a"\n"%s\xff"', "line 2 is not JSON"),
    "half a surrogate pair": ("prompts", b'"%s\\ud800"', "line 1 is not JSON"),
    "NaN": ("items", b'{"text": "%s", "reward": NaN}', "line 1 is not JSON"),
    "deep": ("items", b'{"%s": ' + b"[" * 100_000, "line 1 is not JSON"),
    "a number": ("prompts", b"7 ", "line 1 is neither a text nor an object with a text `prompt`"),
    "no prompt": ("prompts", b'{"%s": "a"}', "line 1 is neither"),
    "an empty prompt": ("prompts", b'"a"\n{"prompt": ""}', "line 2 is neither"),
    "a text among prompts": ("prompts", b'{"text": "%s"}', "line 1 is neither"),
    "a prompt among texts": ("texts", b'{"prompt": "%s"}', "with a text `text`"),
    "an item that is none": ("items", b'"a"\n{"id": "%s"}', "line 2: Value error, an item is a text"),
    "an unknown field": ("items", b'{"text": "a", "%s": 1}', "line 1: Extra inputs are not permitted"),
    "nothing": ("items", b"", "the file has no line"),
    "blank lines": ("texts", b"\n  \r\n", "the file has no line"),
    "a long line": ("texts", b'"a"\n"' + b"a" * MAX_LINE_BYTES + b'"', "line 2 has more than 1000000 bytes"),
    "a long line of many parts": ("items", b'"' + b"a" * 3_000_000 + b'"', "line 1 has more than"),
}


def test_the_first_bad_line_is_named_and_nothing_is_kept(client: TestClient, settings: Settings) -> None:
    for name, (purpose, content, detail) in BAD.items():
        answer = post(client, content.replace(b"%s", CANARY.encode()), purpose=purpose)
        assert detail in refused(answer, 422, "malformed_file")["detail"], name
        assert stored(settings) == []
    assert client.get("/v1/files").json()["data"] == []
    # Wherever the parts of a body are cut, its lines are found.
    lines = [f'"{"é" * n}"\n'.encode() for n in range(1, 40)]
    whole = b"".join(lines)
    for size in (1, 3, 1 << 20):
        parts = (whole[at : at + size] for at in range(0, len(whole), size))
        file = post(client, parts).json()
        assert (file["lines"], file["sha256"]) == (39, hashlib.sha256(whole).hexdigest())


def test_the_type_of_the_body_is_asked_for(client: TestClient) -> None:
    for kind in ("text/plain", "application/json", "multipart/form-data; boundary=x", ""):
        problem = refused(post(client, **{"Content-Type": kind}), 415, "unsupported_media_type")
        assert "application/jsonl" in problem["detail"]
    refused(post(client, **{"Content-Encoding": "gzip"}), 415, "unsupported_media_type")
    assert post(client, **{"Content-Type": "application/x-ndjson; charset=utf-8"}).status_code == 201
    for wrong in ({"purpose": CANARY}, {"name": "a\nb"}, {"name": ""}, {"name": "a" * 256}):
        refused(post(client, **wrong), 422, "validation_error")  # type: ignore[arg-type]


def test_a_file_may_be_larger_than_a_request_and_has_a_limit_of_its_own(
    new_app: NewApp, settings: Settings
) -> None:
    small = settings.model_copy(update={"max_body_bytes": 100, "max_file_bytes": 1000})
    fits, over = b'"a"\n' * 250, b'"a"\n' * 251
    with TestClient(new_app(small), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        assert post(client, fits).status_code == 201
        for content in (over, (over[at : at + 300] for at in range(0, len(over), 300))):
            refused(post(client, content), 413, "request_too_large")
        refused(client.post("/v1/jobs", content=fits), 413, "request_too_large")
    assert len(stored(settings)) == 1


def test_an_owner_has_a_quota(new_app: NewApp, settings: Settings) -> None:
    settings = settings.model_copy(update={"file_bytes_per_owner": 100})
    with TestClient(new_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        first = post(client, b'"a"\n' * 15).json()["id"]
        for content in (b'"a"\n' * 11, (b'"a"\n' for _ in range(11))):  # told by its length, and by its end
            answer = post(client, content)
            assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
            assert int(answer.headers["retry-after"]) > 0
        assert stored(settings) == [first]
        assert post(client, b'"a"\n' * 10).status_code == 201
        client.delete(f"/v1/files/{first}")
        assert post(client, b'"a"\n' * 15).status_code == 201


def test_a_strangers_file_is_none(keyed_client: TestClient, new_key: NewKey, spec: dict[str, Any]) -> None:
    mine, other = new_key(), new_key()
    file_id = post(keyed_client, **mine).json()["id"]
    url = f"/v1/files/{file_id}"
    for method, path in (
        ("GET", url),
        ("GET", f"{url}/content"),
        ("HEAD", f"{url}/content"),
        ("DELETE", url),
    ):
        assert keyed_client.request(method, path, headers=other).status_code == 404
    assert keyed_client.get("/v1/files", headers=other).json()["data"] == []
    spec["config"]["data"] = {"prompts_file": file_id}
    refused(keyed_client.post("/v1/jobs", json=spec, headers=other), 422, "file_not_found")
    assert keyed_client.post("/v1/jobs", json=spec, headers=mine).status_code == 201


def test_a_job_reads_uploads_and_keeps_them_until_it_is_done(
    client: TestClient, store: Any, settings: Settings, spec: dict[str, Any]
) -> None:
    prompts, texts, items = (post(client, b'"a"', purpose=p).json() for p in ("prompts", "texts", "items"))
    spec["config"]["data"] = {
        "prompts_file": prompts["id"],
        "eval_prompts_file": "prompts.jsonl",
        "ptx_texts_file": texts["id"],
    }
    spec["config"]["loss"] = {"ptx_coefficient": 1.0}
    score = {"type": "score", "config": {"items_file": items["id"]}}
    for body, uploads in (
        (spec, {"prompts_file": prompts, "ptx_texts_file": texts}),
        (score, {"items_file": items}),
    ):
        job_id = client.post("/v1/jobs", json=body).json()["id"]
        resolved = store.get_job(job_id).resolved
        for field, file in uploads.items():
            assert Path(resolved[field]) == (settings.uploads / file["id"]).resolve()
        assert resolved["files"] == {
            field: {"id": file["id"], "sha256": file["sha256"]} for field, file in uploads.items()
        }
        for file in uploads.values():
            problem = refused(client.delete(f"/v1/files/{file['id']}"), 409, "in_use")
            assert job_id in problem["detail"]
            assert client.get(f"/v1/files/{file['id']}/content").content == b'"a"'
        client.post(f"/v1/jobs/{job_id}/cancel")
        for file in uploads.values():
            assert client.delete(f"/v1/files/{file['id']}").status_code == 204
        refused(client.post("/v1/jobs", json=body), 422, "file_not_found")
    assert stored(settings) == []
    assert (
        "files"
        not in store.get_job(
            client.post(
                "/v1/jobs", json=spec | {"config": spec["config"] | {"data": {"prompts": ["a"]}, "loss": {}}}
            ).json()["id"]
        ).resolved
    )


def test_a_file_serves_its_purpose_alone(client: TestClient, spec: dict[str, Any]) -> None:
    spec["config"]["data"] = {"prompts_file": post(client, b'"a"', purpose="items").json()["id"]}
    problem = refused(client.post("/v1/jobs", json=spec), 422, "file_not_found")
    assert "purpose=prompts" in problem["detail"]


def test_a_key_makes_one_file(client: TestClient, settings: Settings) -> None:
    first = post(client, **{"Idempotency-Key": "k"})
    again = post(client, **{"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    for other in ({"content": b'"b"'}, {"name": "q"}, {"purpose": "texts", "content": b'"a"'}):
        refused(post(client, **{"Idempotency-Key": "k"}, **other), 422, "idempotency_key_reused")
    assert stored(settings) == [first.json()["id"]]
    client.delete(f"/v1/files/{first.json()['id']}")
    refused(post(client, **{"Idempotency-Key": "k"}), 410, "deleted")
    assert stored(settings) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_said_and_leaves_no_half_file(
    new_app: NewApp, settings: Settings, small_disk: Path
) -> None:
    settings = settings.model_copy(update={"uploads_dir": small_disk / "uploads"})
    with TestClient(new_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        line = b'"' + b"a" * 998 + b'"\n'
        problem = refused(post(client, line * 5000), 507, "storage_full")
        assert "the disk is full" in problem["detail"]
        assert stored(settings) == []
        assert post(client, line * 1500).status_code == 201, "there is room again"


def test_a_folder_that_cannot_be_written_is_said(new_app: NewApp, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("")
    settings = settings.model_copy(update={"uploads_dir": tmp_path / "no folder"})
    with TestClient(new_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        assert "cannot be written" in refused(post(client), 507, "storage_full")["detail"]
