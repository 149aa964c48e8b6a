"""The store's part for webhooks, as a Protocol."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

DeliveryStatus = Literal["pending", "succeeded", "failed"]


@dataclass(frozen=True, kw_only=True)
class NewWebhook:
    """What a client asks for, and the secret we made for it."""

    url: str
    event_types: Sequence[str]
    description: str
    enabled: bool
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Webhook:
    """A webhook without its secrets."""

    id: str
    url: str
    event_types: Sequence[str]
    description: str
    enabled: bool
    disabled_reason: str | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, kw_only=True)
class CreatedWebhook:
    """A webhook with the secret that only its creation shows."""

    webhook: Webhook
    secret: str = field(repr=False)
    replayed: bool = False


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message to one webhook, and how far it is."""

    id: str
    type: str
    data: Mapping[str, str]
    status: DeliveryStatus
    attempts: int
    next_at: float
    http_status: int | None
    error: str | None
    created_at: float
    finished_at: float | None


@dataclass(frozen=True, kw_only=True)
class ClaimedDelivery:
    """A message to send now; `delivery.attempts` is the fence."""

    delivery: Delivery
    webhook_id: str
    url: str
    secrets: Sequence[str] = field(repr=False)
    now: float  # the database's


@dataclass(frozen=True, kw_only=True)
class Tried:
    """How a try ended: `retry_in_s` None means that there is no other; `disable` says why the webhook ends."""

    succeeded: bool
    http_status: int | None = None
    error: str | None = None
    retry_in_s: float | None = None
    disable: str | None = None


class WebhookStore(Protocol):
    """Webhooks and their outbox; all raise WebhookNotFound for what is not there or not the owner's."""

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
        """Insert, or return what this key made before.

        Raises IdempotencyKeyReused, WebhookDeleted, TooManyWebhooks.
        """
        ...

    def get_webhook(self, webhook_id: str, owner: str) -> Webhook:
        """One."""
        ...

    def list_webhooks(self, owner: str, *, after: str | None = None, limit: int = 20) -> list[Webhook]:
        """Newest first."""
        ...

    def change_webhook(self, webhook_id: str, owner: str, values: Mapping[str, object]) -> Webhook:
        """Set url, event_types, description, enabled; enabling clears the reason why it was not."""
        ...

    def rotate_webhook(self, webhook_id: str, owner: str, secret: str, *, keep_s: float) -> CreatedWebhook:
        """Another secret; the one before signs too for `keep_s`."""
        ...

    def delete_webhook(self, webhook_id: str, owner: str) -> None:
        """With its deliveries."""
        ...

    def list_deliveries(
        self, webhook_id: str, owner: str, *, after: str | None = None, limit: int = 20
    ) -> list[Delivery]:
        """Newest first."""
        ...

    def redeliver(self, webhook_id: str, owner: str, delivery_id: str) -> Delivery:
        """Pending again, from its first try, under the same id."""
        ...

    def test_webhook(self, webhook_id: str, owner: str) -> Delivery:
        """A delivery of type `webhook.test`."""
        ...

    def claim_delivery(self, *, lease_s: float, busy: Collection[str] = ()) -> ClaimedDelivery | None:
        """The next message that is due, for nobody else for `lease_s`; None if nothing is.

        Those of the webhooks `busy` wait.
        """
        ...

    def end_delivery(self, delivery_id: str, attempt: int, tried: Tried) -> bool:
        """What came of a try; False if the lease ran out and somebody else has taken it."""
        ...

    def forget_deliveries(self, *, older_than_s: float, limit: int = 1000) -> int:
        """Remove messages that nobody has tried for so long, oldest outcomes and those of disabled webhooks alike.

        Returns how many.
        """
        ...
