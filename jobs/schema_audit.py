"""The tables of the audit log (jobs/audit.py): its rows, and where the chain of their hashes ends."""

from sqlalchemy import BigInteger, Column, Double, Integer, String, Table

from jobs.schema import metadata

audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("owner", String, nullable=False),
    Column("key_id", String),
    Column("operation", String, nullable=False),
    Column("resource_id", String),
    Column("status", Integer, nullable=False),
    Column("client", String),
    Column("request_id", String, nullable=False),
    Column("sha256", String, nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("seq", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
)
