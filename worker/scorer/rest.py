"""While a job trains on its GPU the scorer takes no requests and holds no models, until woken or time is up."""

import math
import threading
from collections.abc import Callable

from jobs.errors import ScorerUnavailable
from worker.scorer.failures import failure_of
from worker.scorer.pairs import PairCache, PairKey


class ScorerAsleep(ScorerUnavailable):
    """The scorer has given up its memory to a job that trains on the same GPU."""


class Rest:
    """Whether the scorer sleeps. `changed` is the batcher's lock; `act` is for the thread that owns the models."""

    def __init__(
        self,
        pairs: PairCache,
        changed: threading.Condition,
        *,
        idle: Callable[[], bool],
        load: Callable[[PairKey], None],
        clock: Callable[[], float],
    ) -> None:
        self._pairs, self._changed, self._clock = pairs, changed, clock
        self._idle, self._load = idle, load
        self._until = -math.inf
        self._given_up: list[PairKey] = []

    @property
    def asleep(self) -> bool:
        """True until it is woken or its time is up."""
        return self._clock() < self._until

    @property
    def over(self) -> bool:
        """True if it is awake and has loaded again what it had."""
        return not self.asleep and not self._given_up

    @property
    def due(self) -> bool:
        """True if there is something to give up, or to load again."""
        return bool(len(self._pairs)) if self.asleep else bool(self._given_up)

    @property
    def left_s(self) -> float | None:
        """Until it wakes by itself; None if it is awake."""
        return max(0.0, self._until - self._clock()) if self.asleep else None

    def sleep(self, for_s: float) -> None:
        """Take no requests for `for_s` seconds; returns once those that wait are answered and all models gone."""
        with self._changed:
            self._until = self._clock() + for_s
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: not self.asleep or (self._idle() and not len(self._pairs)), timeout=for_s
            )

    def wake(self) -> None:
        """Load again what was given up, and take requests."""
        with self._changed:
            self._until = -math.inf
            self._changed.notify_all()

    def act(self) -> None:
        """Give up all models, or load again those that were."""
        if self.asleep:
            with self._changed:  # whoever waits for this sees all of it or nothing
                self._given_up = self._pairs.clear() or self._given_up
                self._changed.notify_all()
            return
        for key in self._given_up:
            try:
                self._load(key)
            except Exception as error:  # whoever asks for the pair is told
                failure_of(error, requests=0)
        with self._changed:
            self._given_up = []
