"""Name, metadata and type are columns; metadata can be found; jobs know whom they need; jobs can be deleted."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

AT_ONCE = 500


def upgrade() -> None:
    """The old jobs get what their requests said. No batch mode: on SQLite it would delete what hangs on jobs."""
    op.add_column("jobs", sa.Column("type", sa.String(), nullable=False, server_default="ppo"))
    op.add_column("jobs", sa.Column("name", sa.JSON()))
    op.add_column("jobs", sa.Column("metadata", sa.JSON()))
    op.drop_index("ix_jobs_owner_id", table_name="jobs")
    op.create_index("ix_jobs_listing", "jobs", ["owner", "id", "status", "desired", "type", "created_at"])
    op.create_index("ix_jobs_waiting", "jobs", ["status", "priority", "queued_at", "id"])
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])
    labels = _job_table("job_labels", "owner", "label", "job_id")
    uses = _job_table("job_uses", "used_id", "job_id", sa.Column("for_good", sa.Boolean(), nullable=False))
    op.create_table(
        "deleted_jobs",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("deleted_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_deleted_jobs"),
    )
    for row in _old_jobs():
        _fill_in(row, labels, uses)


def _job_table(name: str, *parts: str | sa.Column[Any]) -> sa.Table:
    """A table whose rows go with those of `job_id`; its strings are its key."""
    key = [part for part in parts if isinstance(part, str)]
    columns = [
        sa.Column(part, sa.String(), nullable=False) if isinstance(part, str) else part for part in parts
    ]
    table = op.create_table(
        name,
        *columns,
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=f"fk_{name}_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint(*key, name=f"pk_{name}"),
    )
    op.create_index(f"ix_{name}_job_id", name, ["job_id"])
    return table


def _old_jobs() -> Iterator[Any]:
    connection, last = op.get_bind(), ""
    jobs = sa.table(
        "jobs", sa.column("id"), sa.column("owner"), sa.column("spec"), sa.column("resolved", sa.JSON())
    )
    query = sa.select(jobs).order_by(jobs.c.id).limit(AT_ONCE)
    while rows := connection.execute(query.where(jobs.c.id > last)).mappings().all():
        yield from rows
        last = rows[-1]["id"]


def _fill_in(row: Any, labels: sa.Table, uses: sa.Table) -> None:
    connection, spec, resolved = op.get_bind(), json.loads(row["spec"]), row["resolved"]
    said = spec.get("metadata") or {}
    kind = spec.get("type", "ppo")
    jobs = sa.table(
        "jobs",
        sa.column("id"),
        sa.column("type"),
        sa.column("name", sa.JSON(none_as_null=True)),
        sa.column("metadata", sa.JSON(none_as_null=True)),
    )
    values = {"type": kind, "name": spec.get("name"), "metadata": said or None}
    connection.execute(sa.update(jobs).where(jobs.c.id == row["id"]).values(**values))
    found = {hashlib.sha256(json.dumps([*pair]).encode()).hexdigest()[:32] for pair in said.items()}
    if found:
        pairs = [{"owner": row["owner"], "label": label, "job_id": row["id"]} for label in sorted(found)]
        connection.execute(sa.insert(labels), pairs)
    start = resolved.get("resume_from")
    needed = {start["job_id"]: False} if start else {}
    needed |= dict.fromkeys((saved["job_id"] for saved in resolved.get("checkpoints", ())), kind == "ppo")
    if needed:
        rows = [{"used_id": used, "job_id": row["id"], "for_good": good} for used, good in needed.items()]
        connection.execute(sa.insert(uses), rows)
