"""How many requests a key may make: a token bucket for each key, in this process alone.

Written here and not taken from `limits`: that has windows, of which the cheap one lets twice the rate through at
its edge and the exact one keeps every request's time, and its storage starts timer threads; this is two numbers a
key. A bucket holds a minute's worth and refills evenly. Behind n API processes a key has n buckets.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

WINDOW_S = 60
MOST_BUCKETS = 10_000  # only keys in force have one; beyond it the one used longest ago is full again


class Rate(NamedTuple):
    """What is left to a key after this request."""

    allowed: bool
    remaining: int
    reset_s: int  # until the bucket is full again; if not allowed, until the next request is


class RequestRates:
    """The buckets. Only the event loop's thread takes from them, so that there is nothing to lock."""

    def __init__(self, per_minute: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._monotonic = per_minute, monotonic
        self.policy = b'"requests";q=%d;w=%d' % (per_minute, WINDOW_S)
        self._buckets: dict[str, tuple[float, float]] = {}  # key id → (requests left, when)

    def take(self, key_id: str) -> Rate:
        """One request of this key."""
        now, most = self._monotonic(), self.per_minute
        left, at = self._buckets.pop(key_id, (float(most), now))
        left = min(float(most), left + (now - at) * most / WINDOW_S)
        allowed = left >= 1
        if allowed:
            left -= 1
        self._buckets[key_id] = (left, now)
        if len(self._buckets) > MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        missing = most - left if allowed else 1 - left
        return Rate(allowed, int(left), math.ceil(missing * WINDOW_S / most))
