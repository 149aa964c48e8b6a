"""`python -m benchmarks.http --registry FILE [--rounds N] [--only polls streams busy large overload]`.

The last line is one JSON object. Exit code 1 if a goal is missed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.http.busy import busy
from benchmarks.http.large import COUNTED, large
from benchmarks.http.overload import overload
from benchmarks.http.polls import idle, require_wrk
from benchmarks.http.service import Service, service
from benchmarks.http.streams import streams

ON_ONE: dict[str, Callable[[Service, int], dict[str, Any]]] = {
    "polls": idle,
    "streams": streams,
    "busy": busy,
    "overload": lambda ours, rounds: overload(ours, max(1, rounds // 2)),
}
PARTS = (*ON_ONE, "large")
MOST = {
    "poll_304_over_bare": 1.5,
    "poll_200_over_bare": 3.0,
    "busy_304_over_bare": 1.5,
    "busy_200_over_bare": 3.0,
    "streams_late_over_tick": 2.0,
    "overload_goodput_over_peak": 1.5,  # more: what was taken for the peak was none
}
LARGE = 1.5  # what 1000 times as many jobs may cost, by all that is not in COUNTED
LEAST = {"overload_goodput_over_peak": 0.8, "streams_polls_beside_silent": 0.9}


def main() -> int:
    """The parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    require_wrk()
    told: dict[str, Any] = {}
    chosen = [part for name, part in ON_ONE.items() if name in options.only]
    if chosen:
        with service(options.registry) as ours:
            for part in chosen:
                told |= part(ours, options.rounds)
    if "large" in options.only:
        told |= large(options.registry, options.rounds)
    print(json.dumps(told))
    missed = _missed(told)
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return int(bool(missed))


def _missed(told: dict[str, Any]) -> list[str]:
    counted = {f"large_{name}" for name in COUNTED}
    most = MOST | {name: LARGE for name in told if name.startswith("large_") and name not in counted}
    missed = [name for name, limit in most.items() if told.get(name, 0) > limit]
    return missed + [name for name, limit in LEAST.items() if told.get(name, limit) < limit]


if __name__ == "__main__":
    sys.exit(main())
