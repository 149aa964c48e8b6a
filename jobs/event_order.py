"""The order in which an owner's events are committed: ADR 6.

An event's `position` counts all events of its job's owner. The number comes from a row of the owner's that the
transaction holds until its end; so a later number is committed later, an aborted transaction leaves no hole, and
whoever has read position n has seen, or can never see, all that is below it.
"""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select

from jobs.schema import event_heads, job_events


def insert_in_order(
    connection: Connection,
    upsert: Callable[..., Any],
    rows: Sequence[dict[str, Any]],
    now: ColumnElement[float],
) -> None:
    """Give each event the next position of its owner, and insert it: the last that a transaction does.

    The owners' rows are held only from here to the commit. They are the last locks of every transaction, and
    taken in one order, so nobody who holds one waits for anything else: there is no deadlock through them.
    """
    for owner in sorted({row["owner"] for row in rows}):
        mine = [row for row in rows if row["owner"] == owner]
        after = _reserve(connection, upsert, owner, len(mine))
        for position, row in enumerate(mine, start=after + 1):
            row["position"] = position
    connection.execute(insert(job_events).values(created_at=now), list(rows))


def _reserve(connection: Connection, upsert: Callable[..., Any], owner: str, count: int) -> int:
    """The position before the first of `count` new ones; until the commit nobody else gets any."""
    head = event_heads.c.position
    new = upsert(event_heads).values(owner=owner, position=count)
    grown = new.on_conflict_do_update(index_elements=["owner"], set_={"position": head + count})
    connection.execute(grown)
    last: int = connection.execute(select(head).where(event_heads.c.owner == owner)).scalar_one()
    return last - count
