"""What clients send to and read from /v1/webhooks."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, StringConstraints

from api.schemas import Document, Page, Timestamp
from api.services.webhooks import DeliveryPage, WebhookPage
from jobs.outbound_urls import MAX_URL
from jobs.store_webhooks import CreatedWebhook, Delivery, DeliveryStatus, Webhook
from rlhf_core.config.base import Config

EVENT_TYPE = r"^(\*|[a-z_]{1,40}\.(\*|[a-z_]{1,40}))$"
URL_TEXT = "https, on port 443, of a public host, without user or fragment; the operator may allow others."
TYPES_TEXT = "Types of events, such as `job.succeeded`; `job.*` and `*` stand for many."

Url = Annotated[str, Field(min_length=1, max_length=MAX_URL, description=URL_TEXT)]
EventTypes = Annotated[
    list[Annotated[str, StringConstraints(pattern=EVENT_TYPE)]],
    Field(min_length=1, max_length=50, description=TYPES_TEXT),
]
Description = Annotated[str, Field(max_length=500)]


class NewWebhookRequest(Config):
    """A webhook to create."""

    url: Url
    event_types: EventTypes = Field(default_factory=lambda: ["job.*"])
    description: Description = ""
    enabled: Annotated[bool, Strict()] = True


class WebhookChanges(Config):
    """What to change; what is not named, or null, stays."""

    url: Url | None = None
    event_types: EventTypes | None = None
    description: Description | None = None
    enabled: Annotated[bool, Strict()] | None = None


class WebhookDocument(Document):
    """A webhook; its secret is shown only where it is made."""

    object: Literal["webhook"] = "webhook"
    id: str
    url: str
    event_types: list[str]
    description: str
    enabled: bool
    disabled_reason: Literal["gone", "failing"] | None = Field(
        description="Why we disabled it: it answered 410 (`gone`), or a message failed for three days (`failing`)."
    )
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, webhook: Webhook) -> Self:
        """The document of a webhook."""
        return cls(**vars(webhook))


class CreatedWebhookDocument(WebhookDocument):
    """A webhook with its secret."""

    secret: str = Field(description="`whsec_…`, for checking signatures. It is not shown again.")

    @classmethod
    def made(cls, created: CreatedWebhook) -> Self:
        """The document of a webhook that was created or given another secret."""
        return cls(**vars(created.webhook), secret=created.secret)


class WebhookList(Page):
    """A page of webhooks."""

    data: list[WebhookDocument]

    @classmethod
    def of(cls, page: WebhookPage) -> Self:
        """The document of a page."""
        data = [WebhookDocument.of(webhook) for webhook in page.webhooks]
        return cls(data=data, has_more=page.more, next_cursor=data[-1].id if page.more else None)


class DeliveryDocument(Document):
    """One message to a webhook. Of the answers only the last one's status is known."""

    object: Literal["webhook.delivery"] = "webhook.delivery"
    id: str = Field(description="The header webhook-id, the same on every try.")
    type: str
    data: dict[str, str]
    status: DeliveryStatus
    attempts: int
    next_attempt_at: Timestamp | None
    http_status: int | None
    error: str | None = Field(description="Why the last try had no answer, such as `timeout`.")
    created_at: Timestamp
    finished_at: Timestamp | None

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """The document of a delivery."""
        fields = dict(vars(delivery))
        next_at = fields.pop("next_at")
        return cls(**fields, next_attempt_at=next_at if delivery.status == "pending" else None)


class DeliveryList(Page):
    """A page of deliveries."""

    data: list[DeliveryDocument]

    @classmethod
    def of(cls, page: DeliveryPage) -> Self:
        """The document of a page."""
        data = [DeliveryDocument.of(delivery) for delivery in page.deliveries]
        return cls(data=data, has_more=page.more, next_cursor=data[-1].id if page.more else None)
