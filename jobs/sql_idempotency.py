"""Idempotency keys: who has used which for what, written in the transaction that makes the thing."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.exc import OperationalError

from jobs.errors import IdempotencyInProgress, IdempotencyKeyReused
from jobs.schema import idempotency_keys
from jobs.sql_base import SqlBase

LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's


class KeyUse(NamedTuple):
    """One owner's key for one operation, and the hash of the request it came with."""

    owner: str
    operation: str  # the OpenAPI operation id
    key: str
    request_sha256: str


class KeysInProgress:
    """The keys with which this process is creating something just now.

    SQLite has one writer at a time. A transaction that waits for it has not begun, and cannot tell the request
    that has its key from any other writer: so who waits for a key does it here, before its transaction. It decides
    nothing (the row does, and two processes know nothing of each other's keys): it only tells 409 from 503.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, ...]] = set()
        self._freed = threading.Condition()

    @contextmanager
    def hold(self, *name: str, wait_s: float) -> Iterator[None]:
        """Raises IdempotencyInProgress if another thread holds `name`, whose last part is the key, for so long."""
        with self._freed:
            if not self._freed.wait_for(lambda: name not in self._held, wait_s):
                raise IdempotencyInProgress(name[-1])
            self._held.add(name)
        try:
            yield
        finally:
            with self._freed:
                self._held.remove(name)
                self._freed.notify_all()


IN_PROGRESS = KeysInProgress()


class IdempotencyRows(SqlBase):
    """What every creating method begins with."""

    def key_held(self, use: KeyUse | None) -> AbstractContextManager[None]:
        """Around the transaction that claims the key. Raises IdempotencyInProgress, on SQLite."""
        if use is None or self.engine.dialect.name != "sqlite":
            return nullcontext()
        database = self.engine.url.database or ""
        return IN_PROGRESS.hold(database, use.owner, use.operation, use.key, wait_s=self.lock_wait_s)

    def claim_key(self, connection: Connection, use: KeyUse, resource_id: str) -> str | None:
        """Bind the key to `resource_id`, which the caller inserts next; or the id of what it made before.

        Raises:
            IdempotencyKeyReused: the key came with another request.
            IdempotencyInProgress: on PostgreSQL, whoever has it did not end within the time we wait for locks.
                (On SQLite `key_held` tells.)
        """
        claimed = (
            self.insert(idempotency_keys)
            .values(**use._asdict(), resource_id=resource_id, created_at=self.now())
            .on_conflict_do_nothing()
            .execution_options(preserve_rowcount=True)
        )
        try:
            first = connection.execute(claimed)
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                raise IdempotencyInProgress(use.key) from error
            raise
        if first.rowcount > 0:
            return None
        before = made_before(connection, use)
        assert before is not None, "it is the key that was in the way"
        return before


def made_before(connection: Connection, use: KeyUse) -> str | None:
    """The id of what the key has made, or None. Raises IdempotencyKeyReused."""
    columns = idempotency_keys.c
    seen = connection.execute(
        select(columns.request_sha256, columns.resource_id).where(
            columns.owner == use.owner, columns.operation == use.operation, columns.key == use.key
        )
    ).one_or_none()
    if seen is None:
        return None
    if seen.request_sha256 != use.request_sha256:
        raise IdempotencyKeyReused(use.key)
    found: str = seen.resource_id
    return found
