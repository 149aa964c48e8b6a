"""Webhooks and their outbox in the database."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, insert, select, update

from jobs.errors import TooManyWebhooks, WebhookDeleted, WebhookNotFound
from jobs.outbox import insert_delivery
from jobs.schema_webhooks import webhook_deliveries, webhooks
from jobs.sql_idempotency import IdempotencyRows, KeyUse
from jobs.store_webhooks import ClaimedDelivery, CreatedWebhook, Delivery, NewWebhook, Tried, Webhook

CREATE = "webhooks_create"
messages = webhook_deliveries.c


class WebhookRows(IdempotencyRows):
    """The part of jobs.store.Store in jobs/store_webhooks.py."""

    def create_webhook(
        self,
        webhook_id: str,
        owner: str,
        new: NewWebhook,
        *,
        idempotency_key: str | None = None,
        request_sha256: str = "",
        most: int = 20,
    ) -> CreatedWebhook:
        """See jobs.store_webhooks.WebhookStore."""
        use = None
        if idempotency_key is not None:
            use = KeyUse(owner, CREATE, idempotency_key, request_sha256)
        with self.key_held(use), self.writing() as connection:
            if use is not None:
                before = self.claim_key(connection, use, webhook_id)
                if before is not None:
                    try:
                        row = _one(connection, before, owner)
                    except WebhookNotFound:
                        raise WebhookDeleted(before) from None
                    return CreatedWebhook(webhook=_webhook(row), secret=row.secret, replayed=True)
            count = select(func.count()).where(webhooks.c.owner == owner)
            if connection.execute(count).scalar_one() >= most:
                raise TooManyWebhooks(f"an owner has at most {most} webhooks")
            connection.execute(
                insert(webhooks).values(
                    id=webhook_id,
                    owner=owner,
                    url=new.url,
                    event_types=list(new.event_types),
                    description=new.description,
                    enabled=new.enabled,
                    secret=new.secret,
                    created_at=self.now(),
                    updated_at=self.now(),
                )
            )
            return CreatedWebhook(webhook=_webhook(_one(connection, webhook_id, owner)), secret=new.secret)

    def get_webhook(self, webhook_id: str, owner: str) -> Webhook:
        """See jobs.store_webhooks.WebhookStore."""
        with self.reading() as connection:
            return _webhook(_one(connection, webhook_id, owner))

    def list_webhooks(self, owner: str, *, after: str | None = None, limit: int = 20) -> list[Webhook]:
        """See jobs.store_webhooks.WebhookStore."""
        query = select(webhooks).where(webhooks.c.owner == owner).order_by(webhooks.c.id.desc()).limit(limit)
        if after is not None:
            query = query.where(webhooks.c.id < after)
        with self.reading() as connection:
            return [_webhook(row) for row in connection.execute(query)]

    def change_webhook(self, webhook_id: str, owner: str, values: Mapping[str, object]) -> Webhook:
        """See jobs.store_webhooks.WebhookStore."""
        changed = dict(values)
        if "enabled" in changed:
            changed["disabled_reason"] = None
        with self.writing() as connection:
            self._set(connection, webhook_id, owner, changed)
            return _webhook(_one(connection, webhook_id, owner))

    def rotate_webhook(self, webhook_id: str, owner: str, secret: str, *, keep_s: float) -> CreatedWebhook:
        """See jobs.store_webhooks.WebhookStore."""
        values = {
            "old_secret": webhooks.c.secret,
            "old_secret_until": self.now() + keep_s,
            "secret": secret,
        }
        with self.writing() as connection:
            self._set(connection, webhook_id, owner, values)
            return CreatedWebhook(webhook=_webhook(_one(connection, webhook_id, owner)), secret=secret)

    def delete_webhook(self, webhook_id: str, owner: str) -> None:
        """See jobs.store_webhooks.WebhookStore."""
        with self.writing() as connection:
            gone = connection.execute(delete(webhooks).where(_is(webhook_id, owner)))
            if gone.rowcount == 0:
                raise WebhookNotFound(webhook_id)

    def list_deliveries(
        self, webhook_id: str, owner: str, *, after: str | None = None, limit: int = 20
    ) -> list[Delivery]:
        """See jobs.store_webhooks.WebhookStore."""
        query = select(webhook_deliveries).where(messages.webhook_id == webhook_id)
        if after is not None:
            query = query.where(messages.id < after)
        with self.reading() as connection:
            _one(connection, webhook_id, owner)
            found = connection.execute(query.order_by(messages.id.desc()).limit(limit))
            return [_delivery(row) for row in found]

    def redeliver(self, webhook_id: str, owner: str, delivery_id: str) -> Delivery:
        """See jobs.store_webhooks.WebhookStore."""
        this = and_(messages.id == delivery_id, messages.webhook_id == webhook_id)
        with self.writing() as connection:
            _one(connection, webhook_id, owner)
            again = connection.execute(
                update(webhook_deliveries)
                .where(this)
                .values(status="pending", attempts=0, next_at=self.now(), finished_at=None)
            )
            if again.rowcount == 0:
                raise WebhookNotFound(delivery_id)
            return _delivery(connection.execute(select(webhook_deliveries).where(this)).one())

    def test_webhook(self, webhook_id: str, owner: str) -> Delivery:
        """See jobs.store_webhooks.WebhookStore."""
        with self.writing() as connection:
            _one(connection, webhook_id, owner)
            data = {"id": webhook_id, "status": "test"}
            made = insert_delivery(connection, self.now(), webhook_id, "webhook.test", data)
            query = select(webhook_deliveries).where(messages.id == made)
            return _delivery(connection.execute(query).one())

    def claim_delivery(self, *, lease_s: float, busy: Collection[str] = ()) -> ClaimedDelivery | None:
        """See jobs.store_webhooks.WebhookStore. Looks first: an idle outbox takes no write lock."""
        due = and_(messages.status == "pending", messages.next_at <= self.now())
        first = (
            select(messages.id)
            .join(webhooks, webhooks.c.id == messages.webhook_id)
            .where(due, webhooks.c.enabled, webhooks.c.id.not_in(busy))
            .order_by(messages.next_at, messages.id)
            .limit(1)
        )
        with self.reading() as connection:
            found = connection.execute(first).scalar_one_or_none()
        return None if found is None else self._claim_delivery(found, due, lease_s)

    def _claim_delivery(
        self, delivery_id: str, due: ColumnElement[bool], lease_s: float
    ) -> ClaimedDelivery | None:
        with self.writing() as connection:
            ours = connection.execute(
                update(webhook_deliveries)
                .where(messages.id == delivery_id, due)
                .values(attempts=messages.attempts + 1, next_at=self.now() + lease_s)
            )
            if ours.rowcount == 0:
                return None
            old = case((webhooks.c.old_secret_until > self.now(), webhooks.c.old_secret))
            row = connection.execute(
                select(
                    webhook_deliveries,
                    webhooks.c.url,
                    webhooks.c.secret,
                    old.label("old"),
                    self.now().label("now"),
                )
                .join(webhooks, webhooks.c.id == messages.webhook_id)
                .where(messages.id == delivery_id)
            ).one()
            return ClaimedDelivery(
                delivery=_delivery(row),
                webhook_id=row.webhook_id,
                url=row.url,
                secrets=[secret for secret in (row.secret, row.old) if secret is not None],
                now=row.now,
            )

    def end_delivery(self, delivery_id: str, attempt: int, tried: Tried) -> bool:
        """See jobs.store_webhooks.WebhookStore."""
        over = tried.retry_in_s is None
        values: dict[str, Any] = {"http_status": tried.http_status, "error": tried.error}
        if over:
            values |= {"status": "succeeded" if tried.succeeded else "failed", "finished_at": self.now()}
        else:
            values["next_at"] = self.now() + tried.retry_in_s
        fence = and_(messages.id == delivery_id, messages.attempts == attempt, messages.status == "pending")
        with self.writing() as connection:
            done = connection.execute(update(webhook_deliveries).where(fence).values(**values))
            if done.rowcount and tried.disable is not None:
                this = select(messages.webhook_id).where(messages.id == delivery_id).scalar_subquery()
                connection.execute(
                    update(webhooks)
                    .where(webhooks.c.id == this)
                    .values(enabled=False, disabled_reason=tried.disable, updated_at=self.now())
                )
            return done.rowcount > 0

    def forget_deliveries(self, *, older_than_s: float, limit: int = 1000) -> int:
        """See jobs.store_webhooks.WebhookStore. By next_at: it has an index, and stays once a message is over."""
        past = and_(
            messages.status.in_(["pending", "succeeded", "failed"]),
            messages.next_at < self.now() - older_than_s,
        )
        with self.reading() as connection:
            found = list(connection.execute(select(messages.id).where(past).limit(limit)).scalars())
        if not found:
            return 0
        with self.writing() as connection:
            gone = delete(webhook_deliveries).where(messages.id.in_(found), past)
            return connection.execute(gone).rowcount

    def _set(self, connection: Connection, webhook_id: str, owner: str, values: dict[str, Any]) -> None:
        changed = update(webhooks).where(_is(webhook_id, owner)).values(**values, updated_at=self.now())
        if connection.execute(changed).rowcount == 0:
            raise WebhookNotFound(webhook_id)


def _is(webhook_id: str, owner: str) -> ColumnElement[bool]:
    return and_(webhooks.c.id == webhook_id, webhooks.c.owner == owner)


def _one(connection: Connection, webhook_id: str, owner: str) -> Any:
    row = connection.execute(select(webhooks).where(_is(webhook_id, owner))).one_or_none()
    if row is None:
        raise WebhookNotFound(webhook_id)
    return row


def _webhook(row: Any) -> Webhook:
    return Webhook(**{name: getattr(row, name) for name in Webhook.__dataclass_fields__})


def _delivery(row: Any) -> Delivery:
    return Delivery(**{name: getattr(row, name) for name in Delivery.__dataclass_fields__})
