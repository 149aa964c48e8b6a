"""Which metrics a job has: written with its steps, so that no reader has to look through them."""

from collections.abc import Mapping

from sqlalchemy import Connection, select

from jobs.metric_series import TIMINGS
from jobs.schema_data import job_metric_keys
from jobs.sql_base import SqlBase


class MetricKeyRows(SqlBase):
    """What the owner of a run remembers with each step."""

    def remember_keys(
        self,
        connection: Connection,
        job_id: str,
        metrics: Mapping[str, float],
        timings: Mapping[str, float],
    ) -> None:
        """Add the keys that no step before had; most steps add none."""
        keys = {*metrics, *(TIMINGS + name for name in timings)}
        known = select(job_metric_keys.c.key).where(job_metric_keys.c.job_id == job_id)
        new = sorted(keys.difference(connection.execute(known).scalars()))
        if new:
            connection.execute(
                self.insert(job_metric_keys).on_conflict_do_nothing(),
                [{"job_id": job_id, "key": key} for key in new],
            )
