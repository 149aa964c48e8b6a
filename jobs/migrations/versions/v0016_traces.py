"""The trace that the request for a job belonged to."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A column. No batch mode: on SQLite it would delete what hangs on jobs."""
    op.add_column("jobs", sa.Column("trace_id", sa.String()))
