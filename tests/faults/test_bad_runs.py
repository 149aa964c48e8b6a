"""One run of each mechanism against a bad run; all of them: `python -m tests.faults.bad_runs`."""

import json
import subprocess
import sys


def test_a_bad_run_ends_in_the_right_error_and_bothers_nobody() -> None:
    faults = ["is-nan-once", "nothing", "hangs", "segfaults", "takes-all-memory", "drifts-away", "beside"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.bad_runs", *faults], capture_output=True, text=True
    )
    results = {result["fault"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert {name: result["wrong"] for name, result in results.items()} == {name: [] for name in faults}, (
        done.stderr
    )
    # A NaN that does not come back leaves no trace in what was trained.
    assert results["is-nan-once"]["outcome"] == results["nothing"]["outcome"]
