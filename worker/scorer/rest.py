"""While a job trains on its GPU the scorer takes no requests and holds no models, until woken or time is up."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.errors import ScorerUnavailable
from worker.scorer.failures import failure_of
from worker.scorer.memory import device_is_lost
from worker.scorer.pairs import PairCache, PairKey


class ScorerAsleep(ScorerUnavailable):
    """The scorer has given up its memory to a job that trains on the same GPU."""


class Rest:
    """Whether the scorer sleeps: as long as any worker wants it to.

    `changed` is the batcher's lock; `act` is for the thread that owns the models.
    """

    def __init__(
        self,
        pairs: PairCache,
        changed: threading.Condition,
        *,
        idle: Callable[[], bool],
        closed: Callable[[], bool],
        load: Callable[[PairKey], None],
        clock: Callable[[], float],
    ) -> None:
        self._pairs, self._changed, self._clock = pairs, changed, clock
        self._idle, self._closed, self._load = idle, closed, load
        self._until: dict[str, float] = {}  # by worker
        self._given_up: list[PairKey] = []
        self._busy = 0  # what is being loaded or given up is neither there nor gone

    @property
    def asleep(self) -> bool:
        """True until every worker that asked has woken it, or is past its time."""
        return self._clock() < max(self._until.values(), default=-math.inf)

    @property
    def over(self) -> bool:
        """True if it is awake and has loaded again what it had."""
        return not self.asleep and not self._given_up

    @property
    def due(self) -> bool:
        """True if there is something to give up, or to load again."""
        return bool(len(self._pairs)) if self.asleep else bool(self._given_up)

    @property
    def wait_s(self) -> float | None:
        """How long nothing will be due unless something changes; None: for ever."""
        left = max(self._until.values(), default=-math.inf) - self._clock()
        if left > 0:
            return left
        return 0.0 if self._given_up else None

    def sleep(self, who: str, for_s: float) -> bool:
        """Take no requests for `for_s` seconds at least.

        True once those that wait are answered and all models gone; False if it woke or was closed before.
        """
        with self._changed:
            self._until[who] = max(self._until.get(who, -math.inf), self._clock() + for_s)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._gone() or not self.asleep or self._closed(), timeout=for_s)
            return self._gone()

    def _gone(self) -> bool:
        return self.asleep and self._idle() and not self._busy and not len(self._pairs)

    def wake(self, who: str) -> None:
        """This worker no longer needs the memory; if no other does, load again what was given up."""
        with self._changed:
            self._until.pop(who, None)
            self._changed.notify_all()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While models come or go outside of a request."""
        with self._changed:
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def act(self) -> None:
        """Give up all models, or load again those that were."""
        with self.busy():
            if self.asleep:
                self._given_up += [key for key in self._pairs.clear() if key not in self._given_up]
                return
            while self._given_up and not self.asleep:
                self._load_again(self._given_up[0])
                self._given_up.pop(0)

    def _load_again(self, key: PairKey) -> None:
        try:
            self._load(key)
        except Exception as error:  # whoever asks for the pair is told
            failure_of(error, requests=0)
            if device_is_lost():
                raise
