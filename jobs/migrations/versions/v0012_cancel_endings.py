"""How a client wants the process of a cancelled job to end."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two columns. No batch mode: on SQLite it would delete what hangs on jobs."""
    op.add_column("jobs", sa.Column("cancel_saves", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column("jobs", sa.Column("cancel_grace_s", sa.Double()))
