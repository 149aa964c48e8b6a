"""What a training run's stored metrics say: its diagnosis, and the frontier of reward against √KL."""

from functools import lru_cache
from typing import Any, NamedTuple

from jobs.spec import Job, PPOSpec
from jobs.store import Store
from rlhf_core.diagnosis import Finding, diagnose
from rlhf_core.frontier import SERIES, Fit, Point, fit_gao, points_of
from rlhf_core.history import Row

FIRST, BETWEEN, LAST = 10, 400, 100  # rows that are read of a long run
REMEMBERED = 256  # runs
EVENTS_PER_PAGE = 100


class Curve(NamedTuple):
    """One reward against √KL, and Gao's law through it where it can be fitted."""

    points: list[Point]
    fit: Fit | None


class Frontier(NamedTuple):
    """Every reward of a run that was reported with its KL; `last_step` is the last one completed."""

    last_step: int
    curves: dict[str, Curve]
    best_of_n: list[dict[str, Any]]  # as the worker's event has them; empty where they were not asked for


class RunAnalysis:
    """Reads a run's rows; its findings once per step, because every poll of a job asks for them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered = lru_cache(REMEMBERED)(self._diagnose)

    def findings(self, job: Job) -> tuple[Finding, ...] | None:
        """The rules that fire over the completed steps; None for a score job."""
        if not isinstance(job.spec, PPOSpec):
            return None
        every = job.ppo.evaluation.every_steps or 1
        return self._remembered(job.id, job.attempt, job.first_step, job.step, every)

    def frontier(self, job: Job) -> Frontier:
        """Without any points for a score job."""
        rows = []
        if isinstance(job.spec, PPOSpec):
            rows = self._rows(job.id, job.first_step, job.step, job.ppo.evaluation.every_steps or 1)
        curves = {name: points_of(rows, name) for name in SERIES}
        fitted = {name: Curve(points, fit_gao(points)) for name, points in curves.items()}
        return Frontier(job.step, fitted, self._best_of_n(job))

    def _best_of_n(self, job: Job) -> list[dict[str, Any]]:
        if not isinstance(job.spec, PPOSpec) or job.ppo.evaluation.best_of_n is None:
            return []
        after = 0
        while page := self._store.list_events(job.id, after=after, limit=EVENTS_PER_PAGE):
            for event in page:
                if event.type == "job.best_of_n":
                    return list(event.data["points"])
            after = page[-1].seq
        return []

    def _diagnose(
        self, job_id: str, attempt: int, start: int, step: int, evaluated_every: int
    ) -> tuple[Finding, ...]:
        """Another attempt may have written the same steps again."""
        return tuple(diagnose(self._rows(job_id, start, step, evaluated_every)))

    def _rows(self, job_id: str, start: int, step: int, evaluated_every: int) -> list[Row]:
        """All rows up to `step` of a short run; else the first, the last, and between them every so many steps and
        every so many evaluated ones.

        Rows beyond `step` are those of an attempt that was lost after its checkpoint.
        """
        steps = step - start
        if steps == 0:
            return []
        parts: list[tuple[int, int, int]] = [(start + 1, steps, 1)]
        if steps > BETWEEN + LAST:
            strides = {stride * -(-steps // (BETWEEN * stride)) for stride in (1, evaluated_every)}
            parts = [(start + 1, FIRST, 1), (step - LAST + 1, LAST, 1)]
            parts += [(start + 1, BETWEEN, stride) for stride in sorted(strides)]
        found = {
            row.step: Row(row.step, row.metrics)
            for first, most, every in parts
            for row in self._store.list_metrics(job_id, from_step=first, limit=most, every=every)
            if row.step <= step
        }
        return [found[at] for at in sorted(found)]
