"""The outbox: an event's deliveries, in the transaction that writes the event."""

from collections.abc import Sequence

import uuid_utils
from sqlalchemy import ColumnElement, Connection, insert, select

from jobs.schema import jobs
from jobs.schema_webhooks import webhook_deliveries, webhooks
from jobs.states import Desired, Status, public_status


def wanted(event_type: str, filters: Sequence[str]) -> bool:
    """True if a filter names the type, or its beginning: `job.succeeded`, `job.*`, `*`."""
    return any(
        event_type.startswith(item[:-1]) if item.endswith("*") else event_type == item for item in filters
    )


def enqueue_events(
    connection: Connection, now: ColumnElement[float], job_id: str, event_types: Sequence[str]
) -> None:
    """A delivery for each event and each enabled webhook of the job's owner that wants it.

    Without a webhook this is one look at an index.
    """
    rows = connection.execute(
        select(webhooks.c.id, webhooks.c.event_types, jobs.c.status, jobs.c.desired)
        .join(jobs, jobs.c.owner == webhooks.c.owner)
        .where(jobs.c.id == job_id, webhooks.c.enabled)
        .with_for_update(read=True, key_share=True, of=webhooks)  # none is deleted before we have committed
    ).all()
    found = [
        (
            row.id,
            event_type,
            {"id": job_id, "status": public_status(Status(row.status), Desired(row.desired))},
        )
        for event_type in event_types
        for row in rows
        if wanted(event_type, row.event_types)
    ]
    for webhook_id, event_type, data in found:
        insert_delivery(connection, now, webhook_id, event_type, data)


def insert_delivery(
    connection: Connection, now: ColumnElement[float], webhook_id: str, event_type: str, data: dict[str, str]
) -> str:
    """One pending delivery; its id."""
    delivery_id = f"msg_{uuid_utils.uuid7().hex}"
    connection.execute(
        insert(webhook_deliveries).values(
            id=delivery_id,
            webhook_id=webhook_id,
            type=event_type,
            data=data,
            status="pending",
            attempts=0,
            next_at=now,
            created_at=now,
        )
    )
    return delivery_id
