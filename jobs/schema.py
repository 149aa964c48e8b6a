"""The tables. Times are seconds since the epoch by the database's clock (`EpochNow`), never a worker's.

Text that a model, a library or a client wrote sits in JSON columns where it may hold a NUL character:
PostgreSQL's text refuses it, JSON escapes it.
"""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    true,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON(none_as_null=True)


def _job_id() -> Column[str]:
    return Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column(
        "spec", Text, nullable=False
    ),  # JobSpec as JSON text, as it was asked for: parsed once, by pydantic
    Column("type", String, nullable=False, server_default="ppo"),  # of the spec: lists filter by it
    Column("name", Json),  # this and the next two begin as the spec has them; a PATCH changes them here alone
    Column("metadata", Json),
    Column("priority", Integer, nullable=False),  # the dispatcher's order
    Column("resolved", Json, nullable=False),
    Column("trace_id", String),  # of the request that made it, as W3C Trace Context has it
    Column("max_attempts", Integer, nullable=False),  # of the spec: the reaper decodes no spec
    Column("status", String, nullable=False),
    Column("desired", String, nullable=False),
    Column("phase", Text),
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crash_count", Integer, nullable=False),  # attempts lost since saved_step grew
    Column("saved_step", Integer, nullable=False),  # the highest step that was ever saved
    Column("dispatched_epoch", Integer, nullable=False),
    Column("dispatched_at", Double),
    Column("dispatches", Integer, nullable=False),  # messages sent in dispatched_epoch
    Column("lease_until", Double),
    Column("worker", String),
    Column("step", Integer, nullable=False),
    Column("latest", Json, nullable=False),
    Column("result", Json),
    Column("error", Json),
    Column("reason", Json),  # of the last pause or cancel, in the client's words
    Column("cancel_requested_at", Double),
    Column(
        "cancel_saves", Boolean, nullable=False, server_default=true()
    ),  # its process may save before it ends
    Column("cancel_grace_s", Double),  # and has so long for that; null: as long as the worker gives
    Column("version", Integer, nullable=False),
    Column("event_seq", Integer, nullable=False),  # of the last event
    Column("created_at", Double, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("started_at", Double),
    Column("progress_at", Double),
    Column("heartbeat_at", Double),
    Column("finished_at", Double),
    Column("updated_at", Double, nullable=False),
    Index("ix_jobs_status_lease_until", "status", "lease_until"),
    # All that a list filters by: a walk along it reads no row.
    Index("ix_jobs_listing", "owner", "id", "status", "desired", "type", "created_at"),
    # The same for one status: of 100,000 ended jobs none is passed on the way to the running ones.
    Index("ix_jobs_in_status", "owner", "status", "id", "desired", "type", "created_at"),
    Index("ix_jobs_finished_at", "finished_at", "id"),  # retention: the oldest first
    Index("ix_jobs_waiting", "status", "priority", "queued_at", "id"),  # a job's place in the queue
)

job_events = Table(
    "job_events",
    metadata,
    _job_id(),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("type", String, nullable=False),
    Column("level", String, nullable=False),
    Column("message", Json, nullable=False),
    Column("data", Json, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column(
        "owner", String
    ),  # of the job; this and the next are null in events from before there were positions
    Column("position", BigInteger),  # among all events of the owner, in the order of their commits
    Index("ix_job_events_owner_position", "owner", "position", unique=True),
)

event_heads = Table(
    "event_heads",
    metadata,
    Column("owner", String, primary_key=True),
    Column("position", BigInteger, nullable=False),  # of the owner's last event
)

job_metrics = Table(
    "job_metrics",
    metadata,
    _job_id(),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("metrics", Json, nullable=False),
    Column("timings", Json, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

job_samples = Table(
    "job_samples",
    metadata,
    _job_id(),
    Column("step", Integer, primary_key=True, autoincrement=False),
    Column("kind", String, primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("prompt", Json, nullable=False),
    Column("completion", Json, nullable=False),
    Column("data", Json, nullable=False),
    Column("kl", Double),  # of the data, to sort by; null where it is no finite number
    Column("reward", Double),
)

job_checkpoints = Table(
    "job_checkpoints",
    metadata,
    Column("id", String, primary_key=True),
    Column("job_id", String, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("name", String, nullable=False),
    Column("step", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("pinned", Boolean, nullable=False),  # retention leaves it alone
    Column("expires_at", Double, index=True),  # a client's word: from then on nobody needs it
    Column("attempt", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("job_id", "name"),
)

job_shards = Table(
    "job_shards",
    metadata,
    _job_id(),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("items", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("sha256", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("cursor", Json, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner", String, primary_key=True),
    Column("operation", String, primary_key=True),  # the OpenAPI operation id
    Column("key", String, primary_key=True),
    Column("request_sha256", String, nullable=False),
    Column("resource_id", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Index("ix_idempotency_keys_created_at", "created_at"),  # a sweep removes the old ones
)


class EpochNow(FunctionElement[float]):
    """The database's clock in seconds since the epoch."""

    name = "epoch_now"
    type = Double()
    inherit_cache = True


@compiles(EpochNow, "sqlite")
def _sqlite_now(element: EpochNow, compiler: SQLCompiler, **kw: Any) -> str:
    # unixepoch('now', 'subsec') is silently NULL before SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(EpochNow, "postgresql")
def _postgresql_now(element: EpochNow, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"
