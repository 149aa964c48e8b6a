"""Timings by phase, and memory."""

import os
import sys
from pathlib import Path

import pytest
import torch

from rlhf_core.metrics import durations, peak_memory_bytes


def test_seconds_by_phase_and_tokens_per_second_without_evaluation() -> None:
    clock = [10.0, 12.0, 12.5, 14.0, 18.0]
    expected = {"generate_s": 2.0, "reward_s": 0.5, "score_s": 1.5, "update_s": 4.0, "tokens_per_s": 5.0}
    assert durations(clock, 40) == expected  # 40 tokens in 18 − 10 seconds
    assert durations([*clock, 19.0], 40) == expected | {"eval_s": 1.0}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_in_bytes_and_what_the_kernel_saw() -> None:
    status = Path("/proc/self/status").read_text()
    high_water_kib = int(status.split("VmHWM:")[1].split()[0])
    # The two counters are brought up to date at different times.
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.95 * 1024 * high_water_kib <= peak_memory_bytes(torch.device("cpu")) <= machine
