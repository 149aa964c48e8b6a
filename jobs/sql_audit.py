"""The audit log in the database: appended one row at a time, under the lock of the row that keeps its end."""

from dataclasses import asdict

from sqlalchemy import insert, select, update

from jobs.audit import GENESIS, AuditEntry, AuditHead, AuditRow, chained_sha256
from jobs.schema_audit import audit_head, audit_log
from jobs.sql_base import SqlBase

FIELDS = ("owner", "key_id", "operation", "resource_id", "status", "client", "request_id")


class AuditRows(SqlBase):
    """jobs.store_audit.AuditStore."""

    def record_audit(self, entry: AuditEntry) -> None:
        """See jobs.store_audit.AuditStore."""
        with self.writing() as connection:
            connection.execute(
                self.insert(audit_head).values(id=1, seq=0, sha256=GENESIS).on_conflict_do_nothing()
            )
            head = connection.execute(select(audit_head, self.now().label("at")).with_for_update()).one()
            seq = head.seq + 1
            sha256 = chained_sha256(head.sha256, seq, head.at, entry)
            connection.execute(insert(audit_log).values(seq=seq, at=head.at, **asdict(entry), sha256=sha256))
            connection.execute(update(audit_head).values(seq=seq, sha256=sha256))

    def list_audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """See jobs.store_audit.AuditStore."""
        query = select(audit_log).where(audit_log.c.seq > after).order_by(audit_log.c.seq).limit(limit)
        with self.reading() as connection:
            return [
                AuditRow(
                    seq=row.seq,
                    at=row.at,
                    entry=AuditEntry(**{name: getattr(row, name) for name in FIELDS}),
                    sha256=row.sha256,
                )
                for row in connection.execute(query)
            ]

    def audit_head(self) -> AuditHead:
        """See jobs.store_audit.AuditStore."""
        with self.reading() as connection:
            row = connection.execute(select(audit_head.c.seq, audit_head.c.sha256)).one_or_none()
        return AuditHead(0, GENESIS) if row is None else AuditHead(row.seq, row.sha256)
