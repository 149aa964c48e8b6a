"""The tables of uploaded files. Their bytes are in the folder of uploads (jobs/upload_folder.py)."""

from sqlalchemy import BigInteger, Column, Double, ForeignKey, Index, Integer, String, Table

from jobs.schema import Json, metadata

files = Table(
    "files",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("name", Json, nullable=False),  # a client's words
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lines", Integer, nullable=False),  # that are not blank
    Column("sha256", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_files_owner_id", "owner", "id"),
)

job_files = Table(  # a file that a job reads stays until the job is done
    "job_files",
    metadata,
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("file_id", String, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Index("ix_job_files_file_id", "file_id"),
)
