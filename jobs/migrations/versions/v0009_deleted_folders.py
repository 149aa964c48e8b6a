"""Not only jobs are deleted: the notes of what is to go name folders."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A job's folder has its id as its path."""
    op.create_table(
        "deleted_folders",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_deleted_folders"),
    )
    op.execute("INSERT INTO deleted_folders (path, deleted_at) SELECT job_id, deleted_at FROM deleted_jobs")
    op.drop_table("deleted_jobs")
