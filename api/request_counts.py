"""How many requests this process has answered, by route, and how long they took.

Of routes there are as many as we have, and of methods those that HTTP knows: no client can make new series.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import accumulate

from api.exposition import Family, Sample

BOUNDS_S = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Times:
    """Of one route: requests by the first bound that they kept, and seconds in all."""

    def __init__(self) -> None:
        self.counts, self.seconds = [0] * (len(BOUNDS_S) + 1), 0.0


class RequestCounts:
    """The event loop's thread alone counts, so that there is nothing to lock; any thread may read."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()
        self._times: defaultdict[str, _Times] = defaultdict(_Times)

    def add(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """One request has been answered; `route` is None for a path that we do not have."""
        route = route or ""
        self._answers[method if method in METHODS else "other", route, status] += 1
        times = self._times[route]
        times.counts[bisect_left(BOUNDS_S, seconds)] += 1
        times.seconds += seconds

    def families(self) -> Iterator[Family]:
        """What was counted so far."""
        answers = [
            Sample(count, {"method": method, "route": route, "status": str(status)})
            for (method, route, status), count in sorted(self._answers.copy().items())
        ]
        yield Family("kleash_http_requests_total", "counter", "Requests that were answered.", answers)
        times = [
            sample for route, times in sorted(self._times.copy().items()) for sample in _of(route, times)
        ]
        yield Family(
            "kleash_http_request_seconds",
            "histogram",
            "Until the last byte was handed over: held polls and streams last as long as they are held.",
            times,
        )


def _of(route: str, times: _Times) -> Iterator[Sample]:
    label = {"route": route}
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    counts = list(accumulate(times.counts))
    for bound, count in zip(bounds, counts, strict=True):
        yield Sample(count, label | {"le": bound}, "_bucket")
    yield Sample(round(times.seconds, 6), label, "_sum")
    yield Sample(counts[-1], label, "_count")
