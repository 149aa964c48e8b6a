"""How long `kleash --help` takes: `python -m benchmarks.help_time`, processes from start to end, in milliseconds.

Printed beside an empty Python process of the same minute. The last line is one JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

TARGET_MS = 300


def median_ms(command: Sequence[str], rounds: int) -> float:
    """The median over `rounds` runs, after one that fills the caches."""
    spent = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        spent.append(1000 * (time.perf_counter() - began))
    return statistics.median(spent[1:])


def main() -> int:
    """Exit code 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    empty = median_ms(["-c", "pass"], rounds)
    found = {"empty_process_ms": empty}
    for words in (["--help"], ["jobs", "--help"]):
        found[f"kleash {' '.join(words)}, ms"] = median_ms(["-m", "kleash", *words], rounds)
    for name, value in found.items():
        print(f"{name:24} {value:6.0f}")
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))
    return int(found["kleash --help, ms"] > TARGET_MS)


if __name__ == "__main__":
    sys.exit(main())
