"""Webhooks over HTTP: what one may ask for, what is shown, and a message that a killed sender had sent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from jobs.outbound import Outbound
from jobs.settings import Settings
from jobs.sql_store import SqlStore
from jobs.webhook_sender import LEASE_S, WebhookSender
from tests.api.acting import create
from tests.contracts.webhook_receiver import Receiver, verified

ROOT = Path(__file__).resolve().parents[2]
URL = "https://example.org/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: Settings, receiver: Receiver) -> Settings:
    """The receiver is allowed; the application's own sender sleeps."""
    return settings.model_copy(update={"outbound_allow": [receiver.host], "webhook_every_s": 0.02})


def made(client: TestClient, url: str = URL, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/webhooks", json={"url": url} | fields)
    assert response.status_code == 201, response.text
    return response.json()


def test_a_webhook_lives(client: TestClient) -> None:
    created = made(client, description="d")
    secret, at = created.pop("secret"), f"/v1/webhooks/{created['id']}"
    assert client.get(at).json() == created
    assert created["event_types"] == ["job.*"]
    changed = client.patch(at, json={"enabled": False, "event_types": ["*"]}).json()
    assert (changed["enabled"], changed["event_types"], changed["url"]) == (False, ["*"], URL)
    rotated = client.post(f"{at}/rotate").json()
    assert rotated["secret"] != secret
    shown = client.get("/v1/webhooks").text + client.get(at).text + client.get(f"{at}/deliveries").text
    assert "whsec_" not in shown
    assert client.delete(at).status_code == 204
    assert client.get(at).json()["code"] == "not_found"


def test_lists_have_pages(client: TestClient) -> None:
    ids = [made(client)["id"] for _ in range(3)]
    first = client.get("/v1/webhooks?limit=2")
    second = client.get(first.headers["Link"].partition(">")[0][1:])
    assert [item["id"] for page in (first, second) for item in page.json()["data"]] == ids[::-1]
    assert (first.json()["has_more"], second.json()["has_more"]) == (True, False)
    assert client.get("/v1/webhooks?after=x").json()["code"] == "invalid_cursor"


def test_a_key_creates_one(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first, again = (client.post("/v1/webhooks", json={"url": URL}, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = client.post("/v1/webhooks", json={"url": f"{URL}2"}, headers=headers)
    assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "https://example.org:8443/",
        "https://10.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::ffff:127.0.0.1]/",
        "https://example.org\\@127.0.0.1/",
        "https://a:b@example.org/",
        "https://example.org/#x",
        "file:///etc/passwd",
    ],
)
def test_urls_are_checked_where_they_are_given(client: TestClient, url: str) -> None:
    at = f"/v1/webhooks/{made(client)['id']}"
    for answer in (client.post("/v1/webhooks", json={"url": url}), client.patch(at, json={"url": url})):
        assert (answer.status_code, answer.json()["code"]) == (422, "url_not_allowed")
        assert url not in answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"event_types": []},
        {"event_types": ["job"]},
        {"event_types": ["job.Succeeded"]},
        {"event_types": "*"},
        {"enabled": "yes"},
        {"secret": "whsec_mine"},
        {"url": ""},
    ],
)
def test_what_does_not_fit_is_refused(client: TestClient, fields: dict[str, Any]) -> None:
    answer = client.post("/v1/webhooks", json={"url": URL} | fields)
    assert answer.status_code == 422


def test_tenants_do_not_meet(keyed_client: TestClient, new_key: Callable[[], dict[str, str]]) -> None:
    alice, bob = new_key(), new_key()
    created = keyed_client.post("/v1/webhooks", json={"url": URL}, headers=alice).json()
    at = f"/v1/webhooks/{created['id']}"
    sent = keyed_client.post(f"{at}/test", headers=alice).json()
    for method, path, body in (
        ("GET", at, None),
        ("PATCH", at, {"enabled": False}),
        ("DELETE", at, None),
        ("POST", f"{at}/rotate", None),
        ("POST", f"{at}/test", None),
        ("GET", f"{at}/deliveries", None),
        ("POST", f"{at}/deliveries/{sent['id']}/redeliver", None),
    ):
        assert keyed_client.request(method, path, json=body, headers=bob).status_code == 404, (method, path)
    assert keyed_client.get("/v1/webhooks", headers=bob).json()["data"] == []
    assert keyed_client.get(at, headers=alice).json()["enabled"]


def until(client: TestClient, path: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while not done(document := client.get(path).json()):
        assert time.monotonic() < deadline, document
        time.sleep(0.02)
    return document


def test_the_application_delivers(
    client: TestClient, receiver: Receiver, spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    created = made(client, receiver.url, event_types=["job.created", "job.cancelled"])
    job = create(client, spec)
    client.post(f"/v1/jobs/{job['id']}/cancel")
    page = until(
        client,
        f"/v1/webhooks/{created['id']}/deliveries",
        lambda page: [item["status"] for item in page["data"]] == ["succeeded"] * 2,
    )
    assert [item["data"]["id"] for item in page["data"]] == [job["id"]] * 2
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {item["id"] for item in page["data"]}
    for headers, body in receiver.got:
        assert verified(created["secret"], headers, body, time.time())
    assert "whsec_" not in caplog.text


SENDER = """
import sys
from jobs.outbound import Outbound
from jobs.sql_store import SqlStore
from jobs.webhook_sender import WebhookSender
WebhookSender(SqlStore(sys.argv[1]), Outbound([sys.argv[2]]), every_s=1).run_once()
"""


@pytest.mark.parametrize(
    ("point", "sends"),
    [
        ("commit.claim_delivery.before", 1),
        ("commit.claim_delivery.after", 1),
        ("webhook.sent", 2),
        ("commit.end_delivery.before", 2),
        ("commit.end_delivery.after", 1),
    ],
)
def test_a_killed_sender_loses_no_message(
    app: FastAPI, store: SqlStore, receiver: Receiver, point: str, sends: int
) -> None:
    client = TestClient(
        app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1)
    )  # no lifespan: no sender
    created = made(client, receiver.url)
    sent = client.post(f"/v1/webhooks/{created['id']}/test").json()
    url = store.engine.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", SENDER, url, receiver.host],
        env=os.environ | {"KLEASH_KILL_AT": f"{point}:1", "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    later = SqlStore(url, now=lambda: time.time() + LEASE_S + 1)
    sender = WebhookSender(later, Outbound([receiver.host]), every_s=1)
    sender.run_once()
    later.close()
    assert [headers["webhook-id"] for headers, _ in receiver.got] == [sent["id"]] * sends
    (delivery,) = client.get(f"/v1/webhooks/{created['id']}/deliveries").json()["data"]
    assert delivery["status"] == "succeeded"
