"""The names of each job's metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

METRICS = "SELECT DISTINCT job_id, part.key FROM job_metrics, json_each(metrics) AS part"
TIMINGS = "SELECT DISTINCT job_id, 'timings/' || part.key FROM job_metrics, json_each(timings) AS part"


def upgrade() -> None:
    """Those of old rows are read from them, once."""
    op.create_table(
        "job_metric_keys",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_job_metric_keys_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "key", name="pk_job_metric_keys"),
    )
    for names in (METRICS, TIMINGS):
        op.execute("INSERT INTO job_metric_keys (job_id, key) " + names)
