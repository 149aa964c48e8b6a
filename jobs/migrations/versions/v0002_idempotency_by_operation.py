"""Idempotency keys are bound to an operation, and name any resource."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The old keys are those of created jobs."""
    connection = op.get_bind()
    old = connection.execute(sa.text("SELECT * FROM idempotency_keys")).mappings().all()
    op.drop_table("idempotency_keys")
    new = op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("request_sha256", sa.String(), nullable=False),
        sa.Column("resource_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("owner", "operation", "key", name="pk_idempotency_keys"),
    )
    op.bulk_insert(
        new,
        [
            {
                "owner": row["owner"],
                "operation": "jobs_create",
                "key": row["key"],
                "request_sha256": row["request_sha256"],
                "resource_id": row["job_id"],
                "created_at": row["created_at"],
            }
            for row in old
        ],
    )
