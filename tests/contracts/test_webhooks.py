"""Webhooks and their outbox, on SQLite and PostgreSQL, with a real receiver on loopback."""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from jobs.errors import IdempotencyKeyReused, TooManyWebhooks, WebhookDeleted, WebhookNotFound
from jobs.outbound import Answer, Outbound
from jobs.outbound_urls import OutboundError
from jobs.signatures import new_secret, signed_headers
from jobs.spec import NewEvent
from jobs.sql_store import SqlStore
from jobs.states import Action
from jobs.store_webhooks import CreatedWebhook, NewWebhook
from jobs.webhook_sender import DELAYS_S, LEASE_S, WebhookSender, body_of, outcome
from tests.contracts.conftest import ManualClock
from tests.contracts.store_jobs import SPEC
from tests.contracts.webhook_receiver import Receiver, verified

OWNER = "alice"


def create(store: SqlStore, job_id: str) -> None:
    store.create_job(job_id, OWNER, SPEC, {"model": {"path": "/m", "base": None}})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def sender(store: SqlStore, receiver: Receiver) -> WebhookSender:
    return WebhookSender(store, Outbound([receiver.host]), every_s=1)


def hook(store: SqlStore, url: str, *types: str, owner: str = OWNER, number: int = 1) -> CreatedWebhook:
    new = NewWebhook(url=url, event_types=types or ("*",), description="", enabled=True, secret=new_secret())
    return store.create_webhook(f"wh_{number:032x}", owner, new)


def deliveries(store: SqlStore, webhook_id: str) -> list[tuple[str, str, int]]:
    return [(d.type, d.status, d.attempts) for d in reversed(store.list_deliveries(webhook_id, OWNER))]


def test_events_reach_the_webhooks_that_want_them(
    store: SqlStore, receiver: Receiver, sender: WebhookSender
) -> None:
    every = hook(store, receiver.url, "job.*")
    some = hook(store, receiver.url, "job.cancelled", number=2)
    others = hook(store, receiver.url, "*", owner="bob", number=3)
    create(store, "job_1")
    store.request("job_1", Action.CANCEL)
    assert deliveries(store, every.webhook.id) == [
        ("job.created", "pending", 0),
        ("job.cancelled", "pending", 0),
    ]
    assert deliveries(store, some.webhook.id) == [("job.cancelled", "pending", 0)]
    assert store.list_deliveries(others.webhook.id, "bob") == []
    assert sender.run_once() == 3
    assert deliveries(store, some.webhook.id) == [("job.cancelled", "succeeded", 1)]
    assert sender.run_once() == 0
    for headers, body in receiver.got:
        secrets = [made.secret for made in (every, some)]
        assert sum(verified(secret, headers, body, 1_000.0) for secret in secrets) == 1
        assert not any(verified(secret, headers, body, 1_301.0) for secret in secrets), "replayed too late"
        assert json.loads(body) == {
            "type": json.loads(body)["type"],
            "timestamp": "1970-01-01T00:16:40.000Z",
            "data": {"id": "job_1", "status": "cancelled" if b"cancelled" in body else "queued"},
        }


def test_messages_are_forgotten_after_their_time_and_none_before(
    store: SqlStore, receiver: Receiver, sender: WebhookSender, clock: ManualClock
) -> None:
    made = hook(store, receiver.url)
    create(store, "job_1")
    assert sender.run_once() == 1
    store.change_webhook(made.webhook.id, OWNER, {"enabled": False})
    store.test_webhook(made.webhook.id, OWNER)  # nobody will send it
    clock.time += 3600
    assert store.forget_deliveries(older_than_s=3600) == 0
    clock.time += 1  # a message's last lease was to end LEASE_S after its try
    assert store.forget_deliveries(older_than_s=3600) == 1
    assert [d.type for d in store.list_deliveries(made.webhook.id, OWNER)] == ["job.created"]
    clock.time += LEASE_S
    store.redeliver(made.webhook.id, OWNER, store.list_deliveries(made.webhook.id, OWNER)[0].id)
    assert store.forget_deliveries(older_than_s=3600) == 0
    clock.time += 3601
    assert store.forget_deliveries(older_than_s=3600) == 1


def test_a_transaction_that_fails_leaves_no_message(store: SqlStore, receiver: Receiver) -> None:
    made = hook(store, receiver.url)
    create(store, "job_1")
    with suppress(RuntimeError), store.writing() as connection:
        store.write_events(connection, "job_1", "me", 0, 1, [NewEvent(type="job.more", message="")])
        raise RuntimeError
    assert deliveries(store, made.webhook.id) == [("job.created", "pending", 0)]


def test_retries_follow_the_table_under_one_id(
    store: SqlStore, clock: ManualClock, receiver: Receiver, sender: WebhookSender
) -> None:
    made = hook(store, receiver.url)
    store.test_webhook(made.webhook.id, OWNER)
    receiver.answers = [(500, {})] * (len(DELAYS_S) + 1)
    for delay in DELAYS_S:
        assert sender.run_once() == 1
        clock.time += delay - 0.5
        assert sender.run_once() == 0, "not before its time"
        clock.time += 0.5 + 0.2 * delay + 0.5
    assert sender.run_once() == 1
    (delivery,) = store.list_deliveries(made.webhook.id, OWNER)
    assert (delivery.status, delivery.attempts, delivery.http_status) == ("failed", 10, 500)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert len({body for _, body in receiver.got}) == 1
    assert store.get_webhook(made.webhook.id, OWNER).disabled_reason == "failing"


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 429, 503])
def test_what_is_not_2xx_is_a_failure(
    store: SqlStore, receiver: Receiver, sender: WebhookSender, status: int
) -> None:
    made = hook(store, receiver.url)
    store.test_webhook(made.webhook.id, OWNER)
    receiver.answers = [(status, {"Location": receiver.url})]
    sender.run_once()
    (delivery,) = store.list_deliveries(made.webhook.id, OWNER)
    assert (delivery.status, delivery.http_status, len(receiver.got)) == ("pending", status, 1)


def test_retry_after_and_gone_are_honoured(
    store: SqlStore, clock: ManualClock, receiver: Receiver, sender: WebhookSender
) -> None:
    made = hook(store, receiver.url)
    date = datetime.fromtimestamp(1_900, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    for header in ("900", date):
        store.test_webhook(made.webhook.id, OWNER)
        receiver.answers = [(503, {"Retry-After": header})]
        clock.time = 1_000.0
        sender.run_once()
        assert store.list_deliveries(made.webhook.id, OWNER)[0].next_at == 1_900
    clock.time = 1_900.0
    receiver.answers = [(410, {})]
    assert sender.run_once() == 1, "the other one waits for a webhook that is on"
    gone = store.get_webhook(made.webhook.id, OWNER)
    assert (gone.enabled, gone.disabled_reason) == (False, "gone")
    create(store, "job_1")
    assert sender.run_once() == 0
    assert store.change_webhook(made.webhook.id, OWNER, {"enabled": True}).disabled_reason is None
    assert sender.run_once() == 1


def test_an_unreadable_retry_after_asks_for_nothing(sender: WebhookSender) -> None:
    for header in ("-1", "soon", "1e9", "Sat, 99 Foo 2026", "²"):
        tried = outcome(Answer(503, header, b""), attempt=1, now=0.0)
        assert tried.retry_in_s is not None
        assert 5 <= tried.retry_in_s <= 6
    assert outcome(Answer(503, "99999999", b""), attempt=1, now=0.0).retry_in_s == 86_400


def test_one_message_has_one_sender_until_its_lease_ends(store: SqlStore, clock: ManualClock) -> None:
    made = hook(store, "https://example.org/")
    store.test_webhook(made.webhook.id, OWNER)
    first = store.claim_delivery(lease_s=LEASE_S)
    assert first is not None
    assert store.claim_delivery(lease_s=LEASE_S) is None
    clock.time += LEASE_S
    second = store.claim_delivery(lease_s=LEASE_S)
    assert second is not None
    assert (second.delivery.id, body_of(second)) == (first.delivery.id, body_of(first))
    over = outcome(OutboundError("timeout", ""), attempt=99, now=0.0)
    assert not store.end_delivery(first.delivery.id, first.delivery.attempts, over), "its lease is over"
    assert store.get_webhook(made.webhook.id, OWNER).enabled


def test_both_secrets_sign_for_a_day(
    store: SqlStore, clock: ManualClock, receiver: Receiver, sender: WebhookSender
) -> None:
    old = hook(store, receiver.url)
    new = store.rotate_webhook(old.webhook.id, OWNER, new_secret(), keep_s=86_400)
    for hours, valid in ((0, [True, True]), (25, [False, True])):
        clock.time += hours * 3600
        store.test_webhook(old.webhook.id, OWNER)
        sender.run_once()
        assert [verified(made.secret, *receiver.got[-1], clock.time) for made in (old, new)] == valid


def test_a_redelivery_is_the_same_message(store: SqlStore, receiver: Receiver, sender: WebhookSender) -> None:
    made = hook(store, receiver.url)
    sent = store.test_webhook(made.webhook.id, OWNER)
    sender.run_once()
    assert store.redeliver(made.webhook.id, OWNER, sent.id).status == "pending"
    sender.run_once()
    assert [headers["webhook-id"] for headers, _ in receiver.got] == [sent.id] * 2
    with pytest.raises(WebhookNotFound):
        store.redeliver(made.webhook.id, OWNER, "msg_other")


def test_nobody_sees_what_is_not_theirs(store: SqlStore) -> None:
    made = hook(store, "https://example.org/")
    sent = store.test_webhook(made.webhook.id, OWNER)
    this: dict[str, Any] = {"webhook_id": made.webhook.id, "owner": "bob"}
    for call in (
        lambda: store.get_webhook(**this),
        lambda: store.change_webhook(**this, values={"enabled": False}),
        lambda: store.rotate_webhook(**this, secret="x", keep_s=1),
        lambda: store.delete_webhook(**this),
        lambda: store.list_deliveries(**this),
        lambda: store.redeliver(**this, delivery_id=sent.id),
        lambda: store.test_webhook(**this),
    ):
        with pytest.raises(WebhookNotFound):
            call()
    assert store.list_webhooks("bob") == []
    store.delete_webhook(made.webhook.id, OWNER)
    assert store.list_webhooks(OWNER) == []


def test_a_key_makes_one_webhook(store: SqlStore) -> None:
    new = NewWebhook(url="https://a/", event_types=["*"], description="", enabled=True, secret=new_secret())
    first = store.create_webhook("wh_1", OWNER, new, idempotency_key="k", request_sha256="a")
    again = store.create_webhook("wh_2", OWNER, new, idempotency_key="k", request_sha256="a")
    assert (again.webhook, again.secret, again.replayed) == (first.webhook, first.secret, True)
    with pytest.raises(IdempotencyKeyReused):
        store.create_webhook("wh_3", OWNER, new, idempotency_key="k", request_sha256="b")
    with pytest.raises(TooManyWebhooks):
        store.create_webhook("wh_4", OWNER, new, most=1)
    assert new.secret not in repr((new, first))
    store.delete_webhook("wh_1", OWNER)
    with pytest.raises(WebhookDeleted):
        store.create_webhook("wh_5", OWNER, new, idempotency_key="k", request_sha256="a")


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    """From the tests of Standard Webhooks' reference libraries."""
    secret, sent = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    headers = signed_headers([secret], sent, 1_614_265_330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert verified(secret, headers, b'{"test": 2432232314}', 1_614_265_330)
    assert not verified(secret, headers, b'{"test": 2432232315}', 1_614_265_330)
