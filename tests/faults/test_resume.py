"""The few places of the resume matrix that differ most; all of them: `python -m tests.faults.resume`."""

import json
import subprocess
import sys


def test_a_run_stopped_inside_a_step_or_a_save_goes_on_to_the_bit() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.resume", "--quick", "--seed", "0"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tally = json.loads(done.stdout.splitlines()[-1])
    assert (tally["cases"], tally["identical"], tally["not_reached"]) == (10, 10, 0)
