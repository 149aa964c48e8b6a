"""The tables of webhooks: where to send what, and the outbox of deliveries."""

from sqlalchemy import Boolean, Column, Double, ForeignKey, Index, Integer, String, Table, Text

from jobs.schema import Json, metadata

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("url", Text, nullable=False),
    Column("event_types", Json, nullable=False),
    Column("description", Json, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", String),  # ours: gone, failing; NULL when its owner did it
    Column("secret", Text, nullable=False),  # as it is: HMAC needs it
    Column("old_secret", Text),  # signs beside the new one until old_secret_until
    Column("old_secret_until", Double),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("ix_webhooks_owner_id", "owner", "id"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String, primary_key=True),  # the header webhook-id, the same on every try
    Column("webhook_id", String, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("type", String, nullable=False),
    Column("data", Json, nullable=False),
    Column("status", String, nullable=False),  # pending, succeeded, failed
    Column("attempts", Integer, nullable=False),  # begun: also the fence of the one under way
    Column("next_at", Double, nullable=False),  # not before; while one is under way, the end of its lease
    Column("http_status", Integer),  # of the last answer
    Column("error", String),  # code of what kept the last try from an answer
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Index("ix_webhook_deliveries_status_next_at", "status", "next_at"),
    Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
)
