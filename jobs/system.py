"""The machine's clock and randomness."""

import secrets
import time

import uuid_utils


class SystemClock:
    """jobs.ports.Clock."""

    def monotonic(self) -> float:
        """See jobs.ports.Clock."""
        return time.monotonic()

    def wait(self, seconds: float) -> None:
        """See jobs.ports.Clock."""
        time.sleep(seconds)


class SystemRng:
    """jobs.ports.Rng."""

    def job_id(self) -> str:
        """See jobs.ports.Rng."""
        return f"job_{uuid_utils.uuid7().hex}"

    def secret(self) -> str:
        """See jobs.ports.Rng."""
        return secrets.token_urlsafe(32)
