"""The worker's sign of life: a file that Celery's event loop touches, for a healthcheck that costs nothing.

The file grows old when the loop hangs, is stopped, or waits for the broker to come back; in none of these cases
would the worker take a job. (`celery inspect ping` starts a second Celery and asks the broker, every time.)
"""

from pathlib import Path
from typing import Any

from celery import bootsteps

EVERY_S = 10.0


def sign_of_life(file: Path) -> Any:
    """A boot step that touches `file` when the event loop first turns, once connected, and from then on."""

    class SignOfLife(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types
        requires = ("celery.worker.components:Timer",)

        def start(self, worker: Any) -> None:
            worker.timer.call_after(0, file.touch)
            worker.timer.call_repeatedly(EVERY_S, file.touch)

    return SignOfLife
