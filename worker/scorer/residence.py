"""Models that are loaded or given up because somebody asked for it, not because a request needs them.

It happens between two batches, on the thread that owns the models. Requests that wait for a model which is given
up have it loaded again when their turn comes. While the scorer sleeps, wishes wait.
"""

import threading
from collections.abc import Callable

from jobs.residents import Resident
from jobs.scoring_wire import ModelSource
from rlhf_core.models import WeightSource
from worker.scorer.failures import code_of
from worker.scorer.memory import device_is_lost
from worker.scorer.pairs import PairCache, PairKey
from worker.scorer.rest import Rest


class Residence:
    """Wishes, one for each model, and how they ended. `changed` is the batcher's lock."""

    def __init__(
        self, pairs: PairCache, changed: threading.Condition, rest: Rest, *, load: Callable[[PairKey], None]
    ) -> None:
        self._pairs, self._changed, self._rest, self._load = pairs, changed, rest, load
        self._wishes: dict[WeightSource, bool] = {}  # True: to have it
        self._failed: dict[WeightSource, str] = {}

    @property
    def due(self) -> bool:
        """True if there is a wish to fulfil now."""
        return bool(self._wishes) and self._rest.over

    def wish(self, source: WeightSource, *, loaded: bool) -> None:
        """Load the model, or give it up, as soon as the models' thread comes to it; the last wish counts."""
        with self._changed:
            self._failed.pop(source, None)
            self._wishes.pop(source, None)
            self._wishes[source] = loaded
            self._changed.notify_all()

    def act(self) -> None:
        """Fulfil the oldest wish. Only for the models' thread."""
        with self._changed:
            source, loaded = next(iter(self._wishes.items()))
        failure = self._fulfil(source, loaded)
        with self._changed:
            if self._wishes.get(source) is loaded:  # nobody has changed his mind
                del self._wishes[source]
            if failure is not None:
                self._failed[source] = failure
            self._changed.notify_all()

    def _fulfil(self, source: WeightSource, loaded: bool) -> str | None:
        """Load it unless it is there, or give it up; the code of what went wrong."""
        try:
            if not loaded:
                self._pairs.drop(source)
            elif source not in self._pairs.resident:
                self._load((source, source))
        except Exception as error:  # the thread's edge: whoever asks for the state is told
            if device_is_lost():
                raise
            return code_of(error)
        return None

    def models(self) -> list[Resident]:
        """Those in memory, being loaded, or that could not be."""
        with self._changed:
            wishes, failed, found = dict(self._wishes), dict(self._failed), dict(self._pairs.resident)
        for source in failed.keys() | {source for source, loaded in wishes.items() if loaded}:
            if source not in found:
                state = Resident(source=ModelSource(**source._asdict()), state="loading")
                if source not in wishes:
                    state = state.model_copy(update={"state": "failed", "error": failed[source]})
                found[source] = state
        return [found[source] for source in sorted(found, key=str)]
