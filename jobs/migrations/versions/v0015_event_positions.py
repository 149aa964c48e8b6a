"""Where an event stands among all events of its job's owner; those that are there already stand nowhere."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A table, two columns and their index."""
    op.create_table(
        "event_heads",
        sa.Column("owner", sa.String(), primary_key=True),
        sa.Column("position", sa.BigInteger(), nullable=False),
    )
    op.add_column("job_events", sa.Column("owner", sa.String()))
    op.add_column("job_events", sa.Column("position", sa.BigInteger()))
    op.create_index("ix_job_events_owner_position", "job_events", ["owner", "position"], unique=True)
