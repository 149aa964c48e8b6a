"""The dispatcher: sends a message for every queued job that has none, or whose message nobody took.

It may run in any number of processes: a message sent twice dies in `claim`. It has a thread of its own, so that a
broker that is down delays nothing else.
"""

import logging
import threading

from jobs.errors import BrokerUnavailable, StoreUnavailable
from jobs.ports import Broker
from jobs.queue import DEFAULT_QUEUE
from jobs.settings import Settings
from jobs.store import Store

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30.0


class Dispatcher:
    """One loop."""

    def __init__(self, store: Store, broker: Broker, settings: Settings) -> None:
        self._store, self._broker, self._settings = store, broker, settings
        self._wake = threading.Event()

    def wake(self) -> None:
        """Look for queued jobs now: called after a commit that queued one (any thread)."""
        self._wake.set()

    def run_once(self) -> int:
        """Send what waits; returns the number of messages. Raises BrokerUnavailable, StoreUnavailable."""
        waiting = self._store.undispatched(
            resend_after_s=self._settings.resend_after_s, running_limit=self._settings.running_jobs_per_owner
        )
        for job in waiting:
            self._broker.publish(job.id, job.epoch, queue=DEFAULT_QUEUE, priority=job.priority)
            self._store.mark_dispatched(job.id, job.epoch)
        return len(waiting)

    def run(self, stop: threading.Event) -> None:
        """Every `dispatch_every_s`, and when woken, until `stop` is set; a failure doubles the pause."""
        pause_s = self._settings.dispatch_every_s
        while not stop.is_set():
            self._wake.clear()
            try:
                self.run_once()
                pause_s = self._settings.dispatch_every_s
            except (BrokerUnavailable, StoreUnavailable) as error:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                log.warning("nothing sent, next try in %.0f s: %s: %s", pause_s, type(error).__name__, error)
            self._wait(stop, pause_s)

    def _wait(self, stop: threading.Event, pause_s: float) -> None:
        """Until woken, stopped, or `pause_s` have passed."""
        while pause_s > 0 and not stop.is_set() and not self._wake.wait(min(pause_s, 0.5)):
            pause_s -= 0.5
