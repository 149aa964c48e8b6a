"""What a client can do with webhooks. Every call sees only the owner's."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import uuid_utils

from api.errors import InvalidCursor
from jobs.errors import WebhookNotFound
from jobs.outbound import Outbound
from jobs.signatures import new_secret
from jobs.store_webhooks import CreatedWebhook, Delivery, NewWebhook, Webhook, WebhookStore

WEBHOOK_ID = re.compile(r"wh_[0-9a-f]{32}")
DELIVERY_ID = re.compile(r"msg_[0-9a-f]{32}")
KEEP_OLD_SECRET_S = 24 * 3600.0


class WebhookPage(NamedTuple):
    """One page, newest first; `more` when older ones follow."""

    webhooks: list[Webhook]
    more: bool


class DeliveryPage(NamedTuple):
    """One page, newest first; `more` when older ones follow."""

    deliveries: list[Delivery]
    more: bool


class WebhookService:
    """Webhooks and their deliveries; all but create and page raise WebhookNotFound."""

    def __init__(self, store: WebhookStore, outbound: Outbound) -> None:
        self._store, self._outbound = store, outbound

    def create(self, fields: Mapping[str, Any], owner: str, idempotency_key: str | None) -> CreatedWebhook:
        """One with a secret of its own. Raises OutboundError, TooManyWebhooks, …: see the store."""
        self._outbound.check(fields["url"])
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return self._store.create_webhook(
            f"wh_{uuid_utils.uuid7().hex}",
            owner,
            NewWebhook(**fields, secret=new_secret()),
            idempotency_key=idempotency_key,
            request_sha256=hashlib.sha256(text.encode()).hexdigest(),
        )

    def get(self, webhook_id: str, owner: str) -> Webhook:
        """The webhook."""
        return self._store.get_webhook(_known(webhook_id), owner)

    def page(self, owner: str, *, after: str | None, limit: int) -> WebhookPage:
        """Newest first. Raises InvalidCursor."""
        if after is not None and not WEBHOOK_ID.fullmatch(after):
            raise InvalidCursor
        found = self._store.list_webhooks(owner, after=after, limit=limit + 1)
        return WebhookPage(found[:limit], len(found) > limit)

    def change(self, webhook_id: str, owner: str, values: Mapping[str, Any]) -> Webhook:
        """Set what is named. Raises OutboundError."""
        if "url" in values:
            self._outbound.check(values["url"])
        return self._store.change_webhook(_known(webhook_id), owner, values)

    def rotate(self, webhook_id: str, owner: str) -> CreatedWebhook:
        """Another secret; for a day messages are signed with both."""
        return self._store.rotate_webhook(_known(webhook_id), owner, new_secret(), keep_s=KEEP_OLD_SECRET_S)

    def delete(self, webhook_id: str, owner: str) -> None:
        """The webhook and its deliveries."""
        self._store.delete_webhook(_known(webhook_id), owner)

    def deliveries(self, webhook_id: str, owner: str, *, after: str | None, limit: int) -> DeliveryPage:
        """Newest first. Raises InvalidCursor."""
        if after is not None and not DELIVERY_ID.fullmatch(after):
            raise InvalidCursor
        found = self._store.list_deliveries(_known(webhook_id), owner, after=after, limit=limit + 1)
        return DeliveryPage(found[:limit], len(found) > limit)

    def redeliver(self, webhook_id: str, owner: str, delivery_id: str) -> Delivery:
        """The same message again, under the same id."""
        if not DELIVERY_ID.fullmatch(delivery_id):
            raise WebhookNotFound(delivery_id)
        return self._store.redeliver(_known(webhook_id), owner, delivery_id)

    def test(self, webhook_id: str, owner: str) -> Delivery:
        """A message of type `webhook.test`, whatever the webhook's types are."""
        return self._store.test_webhook(_known(webhook_id), owner)


def _known(webhook_id: str) -> str:
    """The id, if it could be one: nothing else reaches the database."""
    if not WEBHOOK_ID.fullmatch(webhook_id):
        raise WebhookNotFound(webhook_id)
    return webhook_id
