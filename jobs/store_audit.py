"""The port to the audit log: rows are appended and read, nothing else."""

from typing import Protocol

from jobs.audit import AuditEntry, AuditHead, AuditRow


class AuditStore(Protocol):
    """The part of jobs.store.Store that keeps the audit log."""

    def record_audit(self, entry: AuditEntry) -> None:
        """Append a row to the chain."""
        ...

    def list_audit(self, *, after: int = 0, limit: int = 1000) -> list[AuditRow]:
        """Rows with seq > after, ascending."""
        ...

    def audit_head(self) -> AuditHead:
        """Where the chain ends by the row that is kept beside it; (0, GENESIS) before the first row."""
        ...
