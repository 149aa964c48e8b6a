"""API keys in the database: hashes, never a key."""

from sqlalchemy import insert, select

from jobs.schema import api_keys
from jobs.sql_base import SqlBase


class KeyRows(SqlBase):
    """The part of jobs.store.Store that keeps API keys."""

    def create_key(self, key_id: str, secret_sha256: str, name: str) -> None:
        """See jobs.store.Store."""
        with self.writing() as connection:
            connection.execute(
                insert(api_keys).values(
                    id=key_id, secret_sha256=secret_sha256, name=name, created_at=self.now()
                )
            )

    def key_secret_sha256(self, key_id: str) -> str | None:
        """See jobs.store.Store."""
        query = select(api_keys.c.secret_sha256).where(
            api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)
        )
        with self.reading() as connection:
            return connection.execute(query).scalar_one_or_none()
