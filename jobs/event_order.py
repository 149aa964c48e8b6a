"""The order in which an owner's events are committed: ADR 7.

An event's `position` counts all events of its job's owner. The number comes from a row of the owner's that the
transaction holds until its end; so a later number is committed later, an aborted transaction leaves no hole, and
whoever has read position n has seen, or can never see, all that is below it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, insert, select

from jobs.schema import event_heads, job_events

HEAD = select(event_heads.c.position).where(event_heads.c.owner == bindparam("of")).scalar_subquery()


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
    counts = Counter(row["owner"] for row in rows)
    for owner, count in sorted(counts.items()):
        new = upsert(event_heads).values(owner=owner, position=count)
        grown = {"position": event_heads.c.position + count}
        connection.execute(new.on_conflict_do_update(index_elements=["owner"], set_=grown))
    placed = []
    for row in rows:
        counts[row["owner"]] -= 1
        placed.append({**row, "of": row["owner"], "left": counts[row["owner"]]})
    connection.execute(insert(job_events).values(created_at=now, position=HEAD - bindparam("left")), placed)
