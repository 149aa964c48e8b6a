"""Tables beside `jobs`: what lists find metadata by, which job needs which, and whose files are to go."""

import hashlib
import json

from sqlalchemy import Boolean, Column, Double, ForeignKey, Index, String, Table, Text

from jobs.schema import metadata

job_labels = Table(
    "job_labels",
    metadata,
    Column("owner", String, primary_key=True),
    Column("label", String, primary_key=True),  # `label_of` a pair of the metadata
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_job_labels_job_id", "job_id"),
)

job_uses = Table(
    "job_uses",
    metadata,
    Column("used_id", String, primary_key=True),  # the job whose checkpoint is needed
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),  # who needs it
    Column("for_good", Boolean, nullable=False),  # also after its end: its own checkpoints stand on it
    Index("ix_job_uses_job_id", "job_id"),
)

deleted_folders = Table(
    "deleted_folders",
    metadata,
    Column("path", Text, primary_key=True),  # below the artifacts; it is to go (jobs/deleted_folders.py)
    Column("deleted_at", Double, nullable=False),
)


def label_of(key: str, value: str) -> str:
    """A pair of the metadata as a hash: of one length, and free of what PostgreSQL's text refuses."""
    return hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:32]
