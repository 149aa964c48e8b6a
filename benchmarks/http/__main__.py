"""`python -m benchmarks.http --registry FILE [--rounds N] [--only polls overload]`.

The last line is one JSON object. Exit code 1 if a goal is missed.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.http.overload import overload
from benchmarks.http.polls import idle, require_wrk
from benchmarks.http.service import service
from benchmarks.http.streams import streams

PARTS = ("polls", "streams", "overload")
MOST = {"poll_304_over_bare": 1.5, "poll_200_over_bare": 3.0, "streams_late_over_tick": 2.0}
LEAST = {"overload_goodput_over_peak": 0.8, "streams_polls_beside_silent": 0.9}


def main() -> int:
    """All parts against one service."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    require_wrk()
    told = {}
    with service(options.registry) as ours:
        if "polls" in options.only:
            told |= idle(ours, options.rounds)
        if "streams" in options.only:
            told |= streams(ours, options.rounds)
        if "overload" in options.only:
            told |= overload(ours, max(1, options.rounds // 2))
    print(json.dumps(told))
    missed = [name for name, most in MOST.items() if told.get(name, 0) > most]
    missed += [name for name, least in LEAST.items() if told.get(name, least) < least]
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
