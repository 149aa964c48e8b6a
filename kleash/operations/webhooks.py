"""/v1/webhooks: where messages about jobs go."""

from collections.abc import Sequence
from typing import Unpack

from kleash.calls import Call, document, given, new_key, nothing
from kleash.documents import Page
from kleash.service_documents import Delivery, MadeWebhook, Webhook, WebhookChanges

HOOKS, HOOK = "/v1/webhooks", "/v1/webhooks/{webhook_id}"


def create(
    url: str,
    *,
    event_types: Sequence[str] | None = None,
    description: str | None = None,
    enabled: bool | None = None,
    idempotency_key: str | None = None,
) -> Call[MadeWebhook]:
    """Send messages about events to a URL; the answer has the `secret` they are signed with, this once."""
    body = given(url=url, event_types=event_types, description=description, enabled=enabled)
    headers = new_key(idempotency_key)
    return Call("webhooks_create", "POST", HOOKS, document, headers=headers, body=body, repeatable=True)


def list_(*, limit: int | None = None, after: str | None = None) -> Call[Page[Webhook]]:
    """One page, newest first."""
    query = {"limit": limit, "after": after}
    return Call("webhooks_list", "GET", HOOKS, document, query=query, repeatable=True)


def get(webhook_id: str) -> Call[Webhook]:
    """A webhook, without its secret."""
    return Call("webhooks_get", "GET", HOOK, document, {"webhook_id": webhook_id}, repeatable=True)


def update(webhook_id: str, **changes: Unpack[WebhookChanges]) -> Call[Webhook]:
    """Change its `url`, `event_types` or `description`, or let it rest (`enabled`)."""
    return Call("webhooks_update", "PATCH", HOOK, document, {"webhook_id": webhook_id}, body=changes)


def delete(webhook_id: str) -> Call[None]:
    """Send nothing any more."""
    return Call("webhooks_delete", "DELETE", HOOK, nothing, {"webhook_id": webhook_id})


def test(webhook_id: str) -> Call[Delivery]:
    """Send a message that says nothing."""
    return Call("webhooks_test", "POST", f"{HOOK}/test", document, {"webhook_id": webhook_id})


def rotate(webhook_id: str) -> Call[MadeWebhook]:
    """A new secret; both sign for a day."""
    return Call("webhooks_rotate", "POST", f"{HOOK}/rotate", document, {"webhook_id": webhook_id})


def deliveries(
    webhook_id: str, *, limit: int | None = None, after: str | None = None
) -> Call[Page[Delivery]]:
    """Its messages, newest first, and what came of each."""
    return Call(
        "webhooks_deliveries",
        "GET",
        f"{HOOK}/deliveries",
        document,
        {"webhook_id": webhook_id},
        {"limit": limit, "after": after},
        repeatable=True,
    )


def redeliver(webhook_id: str, delivery_id: str) -> Call[Delivery]:
    """Send a message once more."""
    return Call(
        "webhooks_redeliver",
        "POST",
        f"{HOOK}/deliveries/{{delivery_id}}/redeliver",
        document,
        {"webhook_id": webhook_id, "delivery_id": delivery_id},
    )
