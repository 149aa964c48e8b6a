"""Why and when clients asked a job to stop."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two columns. No batch mode: on SQLite it would delete what hangs on jobs."""
    op.add_column("jobs", sa.Column("reason", sa.JSON(none_as_null=True)))
    op.add_column("jobs", sa.Column("cancel_requested_at", sa.Double()))
