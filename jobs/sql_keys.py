"""API keys in the database: hashes, never a key."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Double, Row, and_, bindparam, insert, or_, select, update

from jobs.errors import KeyNotFound
from jobs.keys import Grant, KeyInForce, StoredKey, scopes_of, stored_scopes
from jobs.schema_keys import api_keys
from jobs.sql_idempotency import IdempotencyRows, KeyUse
from jobs.store_keys import KeyCreated

TOUCH_EVERY_S = 60.0


class KeyRows(IdempotencyRows):
    """jobs.store_keys.KeyStore."""

    def create_key(
        self, key_id: str, secret_sha256: str, grant: Grant, use: KeyUse | None = None
    ) -> KeyCreated:
        """See jobs.store_keys.KeyStore."""
        values: dict[str, Any] = {
            "id": key_id,
            "secret_sha256": secret_sha256,
            "owner": grant.owner,
            "scopes": stored_scopes(grant.scopes),
            "name": grant.name,
            "created_at": self.now(),
            "expires_at": grant.expires_at,
        }
        if grant.expires_in_s is not None:
            values["expires_at"] = self.now() + grant.expires_in_s
        with self.key_held(use), self.writing() as connection:
            before = None if use is None else self.claim_key(connection, use, key_id)
            if before is None:
                connection.execute(insert(api_keys).values(**values))
            row = connection.execute(select(api_keys).where(api_keys.c.id == (before or key_id))).one()
            return KeyCreated(key=_key_of(row), replayed=before is not None)

    def key_in_force(self, key_id: str) -> KeyInForce | None:
        """See jobs.store_keys.KeyStore."""
        columns = api_keys.c
        left_s = (columns.expires_at - self.now()).label("left_s")
        query = select(columns.secret_sha256, columns.owner, columns.scopes, left_s).where(
            columns.id == key_id, columns.revoked_at.is_(None)
        )
        with self.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or (row.left_s is not None and row.left_s <= 0):
            return None
        return KeyInForce(row.secret_sha256, row.owner, scopes_of(row.scopes), row.left_s)

    def get_key(self, key_id: str) -> StoredKey:
        """See jobs.store_keys.KeyStore."""
        with self.reading() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
        if row is None:
            raise KeyNotFound(key_id)
        return _key_of(row)

    def list_keys(
        self, *, owner: str | None = None, after: str | None = None, limit: int = 20
    ) -> list[StoredKey]:
        """See jobs.store_keys.KeyStore."""
        columns = api_keys.c
        query = select(api_keys).order_by(columns.created_at.desc(), columns.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(columns.owner == owner)
        if after is not None:
            last = select(columns.created_at).where(columns.id == after).scalar_subquery()
            older = and_(columns.created_at == last, columns.id < after)
            query = query.where(or_(columns.created_at < last, older))
        with self.reading() as connection:
            return [_key_of(row) for row in connection.execute(query)]

    def revoke_key(self, key_id: str) -> None:
        """See jobs.store_keys.KeyStore."""
        known = api_keys.c.id == key_id
        with self.writing() as connection:
            if connection.execute(select(api_keys.c.id).where(known)).one_or_none() is None:
                raise KeyNotFound(key_id)
            connection.execute(
                update(api_keys).where(known, api_keys.c.revoked_at.is_(None)).values(revoked_at=self.now())
            )

    def touch_keys(self, ages_s: Mapping[str, float]) -> None:
        """See jobs.store_keys.KeyStore. In the order of their ids, so that two processes cannot deadlock."""
        if not ages_s:
            return
        known = api_keys.c.last_used_at
        older = known < self.now() - bindparam("spacing_s", type_=Double())
        touch = (
            update(api_keys)
            .where(api_keys.c.id == bindparam("key_id"), or_(known.is_(None), older))
            .values(last_used_at=self.now() - bindparam("age_s", type_=Double()))
        )
        rows = [
            {"key_id": key_id, "age_s": age_s, "spacing_s": max(age_s, TOUCH_EVERY_S)}
            for key_id, age_s in sorted(ages_s.items())
        ]
        with self.writing() as connection:
            connection.execute(touch, rows)


def _key_of(row: Row[Any]) -> StoredKey:
    return StoredKey(
        id=row.id,
        owner=row.owner,
        name=row.name,
        scopes=scopes_of(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
