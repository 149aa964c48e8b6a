"""So that ended jobs cost nothing: lists and counts of those in one status, and the search for the oldest."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Two indexes."""
    op.create_index("ix_jobs_in_status", "jobs", ["owner", "status", "id", "desired", "type", "created_at"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at", "id"])
