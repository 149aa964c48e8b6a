"""What the API's poller reads: the versions of many jobs, and the new events of many jobs, in a query each."""

from collections.abc import Collection, Mapping

from sqlalchemy import and_, bindparam, or_, select

from jobs.schema import event_heads, job_events, jobs
from jobs.spec import Event
from jobs.sql_base import SqlBase
from jobs.sql_rows import event_of
from jobs.states import Status
from jobs.store_live import JobVersion, OwnerEvent

VERSIONS = select(jobs.c.id, jobs.c.owner, jobs.c.version, jobs.c.event_seq, jobs.c.status).where(
    jobs.c.id.in_(bindparam("job_ids", expanding=True))
)
HEADS = select(event_heads).where(event_heads.c.owner.in_(bindparam("owners", expanding=True)))
IDS_PER_QUERY = 10_000  # SQLite takes 32,766 variables
JOBS_PER_QUERY = 200  # SQLite's expressions may be 1000 deep


class LiveRows(SqlBase):
    """The part of jobs.store.Store for those who follow jobs."""

    def job_versions(self, job_ids: Collection[str]) -> dict[str, JobVersion]:
        """See jobs.store_live.LiveStore."""
        asked, found = list(job_ids), {}
        with self.reading() as connection:
            for start in range(0, len(asked), IDS_PER_QUERY):
                rows = connection.execute(VERSIONS, {"job_ids": asked[start : start + IDS_PER_QUERY]})
                for job_id, owner, version, event_seq, status in rows:
                    found[job_id] = JobVersion(owner, version, event_seq, Status(status))
        return found

    def events_after(self, after: Mapping[str, int], *, limit: int) -> list[tuple[str, Event]]:
        """See jobs.store_live.LiveStore."""
        columns, known = job_events.c, sorted(after.items())
        found: list[tuple[str, Event]] = []
        with self.reading() as connection:
            for start in range(0, len(known), JOBS_PER_QUERY):
                later = [
                    and_(columns.job_id == job_id, columns.seq > seq)
                    for job_id, seq in known[start : start + JOBS_PER_QUERY]
                ]
                query = select(job_events).where(or_(*later)).order_by(columns.job_id, columns.seq)
                rows = connection.execute(query.limit(limit - len(found)))
                found += [(row.job_id, event_of(row)) for row in rows]
                if len(found) == limit:
                    break
        return found

    def event_heads(self, owners: Collection[str]) -> dict[str, int]:
        """See jobs.store_live.LiveStore."""
        asked, found = list(owners), dict.fromkeys(owners, 0)
        with self.reading() as connection:
            for start in range(0, len(asked), IDS_PER_QUERY):
                rows = connection.execute(HEADS, {"owners": asked[start : start + IDS_PER_QUERY]})
                found |= {row.owner: row.position for row in rows}
        return found

    def owner_events(self, owner: str, *, after: int, limit: int) -> list[OwnerEvent]:
        """See jobs.store_live.LiveStore."""
        columns = job_events.c
        query = select(job_events).where(columns.owner == owner, columns.position > after)
        with self.reading() as connection:
            rows = connection.execute(query.order_by(columns.position).limit(limit))
            return [OwnerEvent(row.position, row.job_id, event_of(row)) for row in rows]
