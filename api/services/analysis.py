"""What a training run's stored metrics say: its diagnosis, and the frontier of reward against √KL."""

from functools import lru_cache
from typing import NamedTuple

from jobs.spec import Job, PPOSpec
from jobs.store import Store
from rlhf_core.diagnosis import Finding, diagnose
from rlhf_core.frontier import SERIES, Fit, Point, fit_gao, points_of
from rlhf_core.history import Row

FIRST, BETWEEN, LAST = 10, 400, 100  # rows that are read of a long run
REMEMBERED = 256  # runs


class Curve(NamedTuple):
    """One reward against √KL, and Gao's law through it where it can be fitted."""

    points: list[Point]
    fit: Fit | None


class Frontier(NamedTuple):
    """Every reward of a run that was reported with its KL; `last_step` is the last one completed."""

    last_step: int
    curves: dict[str, Curve]


class RunAnalysis:
    """Reads a run's rows; its findings once per step, because every poll of a job asks for them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered = lru_cache(REMEMBERED)(self._diagnose)

    def findings(self, job: Job) -> tuple[Finding, ...] | None:
        """The rules that fire over the completed steps; None for a score job."""
        if not isinstance(job.spec, PPOSpec):
            return None
        return self._remembered(job.id, job.first_step, job.step, job.ppo.evaluation.every_steps or 1)

    def frontier(self, job: Job) -> Frontier:
        """Without any points for a score job."""
        rows = []
        if isinstance(job.spec, PPOSpec):
            rows = self._rows(job.id, job.first_step, job.step, job.ppo.evaluation.every_steps or 1)
        curves = {name: points_of(rows, name) for name in SERIES}
        return Frontier(job.step, {name: Curve(points, fit_gao(points)) for name, points in curves.items()})

    def _diagnose(self, job_id: str, start: int, step: int, evaluated_every: int) -> tuple[Finding, ...]:
        return tuple(diagnose(self._rows(job_id, start, step, evaluated_every)))

    def _rows(self, job_id: str, start: int, step: int, evaluated_every: int) -> list[Row]:
        """All rows up to `step` of a short run; else the first, the last, and between them every so many.

        Rows beyond `step` are those of an attempt that was lost after its checkpoint.
        """
        steps = step - start
        if steps == 0:
            return []
        parts: list[tuple[int, int, int]] = [(start + 1, steps, 1)]
        if steps > BETWEEN + LAST:
            every = evaluated_every * -(-steps // (BETWEEN * evaluated_every))  # keeps the evaluated steps
            parts = [(start + 1, FIRST, 1), (start + 1, BETWEEN, every), (step - LAST + 1, LAST, 1)]
        found = {
            row.step: Row(row.step, row.metrics)
            for first, most, every in parts
            for row in self._store.list_metrics(job_id, from_step=first, limit=most, every=every)
            if row.step <= step
        }
        return [found[at] for at in sorted(found)]
