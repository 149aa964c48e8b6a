"""The table of API keys."""

from sqlalchemy import Column, Double, String, Table

from jobs.schema import metadata

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("secret_sha256", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("scopes", String, nullable=False),  # separated by blanks
    Column("name", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)
