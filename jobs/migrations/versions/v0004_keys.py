"""API keys get owners, scopes and an end; the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ALL_SCOPES = "admin files jobs:read jobs:write models:read models:write score webhooks"


def upgrade() -> None:
    """A key of before owns the jobs that have its id, and may do everything, as it could."""
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("owner", sa.String()))
        keys.add_column(sa.Column("scopes", sa.String()))
        keys.add_column(sa.Column("expires_at", sa.Double()))
        keys.add_column(sa.Column("last_used_at", sa.Double()))
    op.execute(f"UPDATE api_keys SET owner = id, scopes = '{ALL_SCOPES}'")  # noqa: S608  # our own words
    with op.batch_alter_table("api_keys") as keys:
        keys.alter_column("owner", existing_type=sa.String(), nullable=False)
        keys.alter_column("scopes", existing_type=sa.String(), nullable=False)
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("key_id", sa.String()),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("resource_id", sa.String()),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("client", sa.String()),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit_log"),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_head"),
    )
