"""A store that a run can lean on while the database restarts: what is unavailable is tried again for a while."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from jobs.errors import StoreUnavailable
from jobs.ports import Clock
from jobs.store import Store

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


def patient(store: Store, clock: Clock, *, for_s: float) -> Store:
    """The same store, whose methods raise StoreUnavailable only after `for_s` of trying.

    A transaction whose end is unknown is repeated: steps, samples and checkpoints replace themselves, an event may
    stand there twice, and an ending that was written answers LeaseLost.
    """
    return cast(Store, _Patient(store, clock, for_s))


class _Patient:
    def __init__(self, store: Store, clock: Clock, for_s: float) -> None:
        self._store, self._clock, self._for_s = store, clock, for_s

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        return self._insisting(value) if callable(value) else value

    def _insisting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def insist(*args: Any, **kwargs: Any) -> Any:
            give_up_at, pause_s = self._clock.monotonic() + self._for_s, FIRST_PAUSE_S
            while True:
                try:
                    return method(*args, **kwargs)
                except StoreUnavailable as error:
                    if self._clock.monotonic() + pause_s > give_up_at:
                        raise
                    log.warning("%s: trying again in %.1f s: %s", method.__name__, pause_s, error)
                self._clock.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

        return insist
