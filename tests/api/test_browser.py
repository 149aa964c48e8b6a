"""What browsers are told with every answer, which pages may read it, and the page of documentation."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.browser import SECURITY
from jobs.settings import Settings

STATIC = Path(__file__).parents[2] / "api" / "static"
ORIGIN = "https://dashboard.example.org"
ASKED = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization",
}


def test_every_answer_says_what_it_is_not(client: TestClient, keyed_client: TestClient) -> None:
    answers = [
        client.get(path)
        for path in ("/health", "/version", "/openapi.json", "/v1/jobs", "/nothing", "/v1/jobs/x")
    ]
    answers += [client.post("/v1/jobs", content=b"{"), client.put("/v1/jobs"), keyed_client.get("/v1/jobs")]
    assert {answer.status_code for answer in answers} >= {200, 401, 404, 405, 415}
    for answer in answers:
        assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY, answer.url
        assert "access-control-allow-origin" not in answer.headers


def test_an_error_nobody_expected_says_so_too(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.parts.models, "listed", lambda: 1 / 0)
    answer = client.get("/v1/models")
    assert answer.status_code == 500
    assert {name: answer.headers.get(name) for name in SECURITY} == SECURITY


def test_pages_elsewhere_read_nothing_by_default(client: TestClient) -> None:
    assert client.options("/v1/jobs", headers=ASKED).status_code == 405
    assert "access-control-allow-origin" not in client.get("/v1/jobs", headers={"Origin": ORIGIN}).headers


def test_listed_origins_may_read_and_no_others(
    new_app: Callable[[Settings], FastAPI], settings: Settings
) -> None:
    app = new_app(settings.model_copy(update={"cors_origins": [ORIGIN]}))
    with TestClient(app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50_000)) as client:
        allowed = client.options("/v1/jobs", headers=ASKED)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-credentials" not in allowed.headers
        read = client.get("/v1/jobs", headers={"Origin": ORIGIN})
        assert read.headers["access-control-allow-origin"] == ORIGIN
        assert "Origin" in read.headers["vary"]
        for other in (
            "null",
            "https://evil.example",
            f"{ORIGIN}.evil.example",
            ORIGIN.replace("https", "http"),
        ):
            assert client.options("/v1/jobs", headers=ASKED | {"Origin": other}).status_code == 400
            refused = client.get("/v1/jobs", headers={"Origin": other})
            assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    "origin", ["*", "null", "https://*.example.org", f"{ORIGIN}/", "dashboard.example.org", ""]
)
def test_an_origin_is_exact(origin: str) -> None:
    with pytest.raises(ValidationError, match="exact origin"):
        Settings(cors_origins=[origin])


def test_the_documentation_needs_no_other_host_and_no_inline_code(client: TestClient) -> None:
    page = client.get("/docs")
    policy = page.headers["content-security-policy"]
    for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"):
        assert rule in policy
    assert "unsafe" not in policy
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert named == ["data:,", "docs/page.css", "docs/page.js", "openapi.json", "openapi.json"]
    kinds = {
        "docs/page.css": "text/css",
        "docs/page.js": "text/javascript",
        "openapi.json": "application/json",
    }
    for path, kind in kinds.items():
        answer = client.get(f"/{path}")
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", page.text)


def test_the_front_door_leads_to_the_documentation(client: TestClient) -> None:
    in_browser = client.get("/", headers={"Accept": "text/html,*/*;q=0.8"}, follow_redirects=False)
    assert (in_browser.status_code, in_browser.headers["location"]) == (307, "docs")
    links = client.get("/", headers={"Accept": "*/*"}).json()["links"]
    assert {client.get(path).status_code for path in links.values()} == {200}


def test_text_of_the_document_can_become_no_markup() -> None:
    script = (STATIC / "docs.js").read_text()
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "http://",
        "https://",
    ):
        assert way not in script
    assert "http" not in (STATIC / "docs.css").read_text()


def test_the_documentation_is_no_operation(openapi_document: dict[str, object]) -> None:
    paths = openapi_document["paths"]
    assert isinstance(paths, dict)
    assert not [path for path in paths if path.startswith("/docs")]
