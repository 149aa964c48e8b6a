"""The table of workers: who is there to take jobs. Only for people to look at; no job depends on it."""

from sqlalchemy import Column, Double, String, Table

from jobs.schema import Json, metadata

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True),  # as jobs.worker names it
    Column("host", String, nullable=False),
    Column("queues", Json, nullable=False),
    Column("device", String, nullable=False),
    Column("versions", Json, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
)
