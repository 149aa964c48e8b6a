"""When a checkpoint is to go."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column and its index."""
    op.add_column("job_checkpoints", sa.Column("expires_at", sa.Double()))
    op.create_index("ix_job_checkpoints_expires_at", "job_checkpoints", ["expires_at"])
