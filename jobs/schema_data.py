"""What the database keeps beside a job's metrics, so that they are found without reading them all."""

from sqlalchemy import Column, ForeignKey, String, Table

from jobs.schema import metadata

job_metric_keys = Table(
    "job_metric_keys",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String, primary_key=True),  # of some step's metrics; `timings/…` of its timings
)
