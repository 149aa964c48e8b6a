"""The whole-system simulation: some seeds without a violation, and the same seed twice with the same history."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.sim.run import Simulator, simulator

SEEDS = 24
PARTS = 3


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    with simulator() as made:
        yield made


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_has_a_violation(sim: Simulator, part: int) -> None:
    jobs = 0
    for seed in range(part, SEEDS, PARTS):
        outcome = sim.run(seed)
        assert outcome.violations == [], f"replay: python -m tests.faults.sim --seed {seed}"
        jobs += outcome.jobs.total()
    assert jobs > SEEDS // PARTS  # a system that does nothing violates nothing


def test_a_seed_is_the_same_history_in_another_process_with_other_hashes(sim: Simulator) -> None:
    outcome = sim.run(7)
    assert outcome.hash == sim.run(7).hash
    assert outcome.hash != sim.run(8).hash
    told = subprocess.run(
        [sys.executable, "-m", "tests.faults.sim", "--seed", "7"],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"hash {outcome.hash}" in told.stdout
