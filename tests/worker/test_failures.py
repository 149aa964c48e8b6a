"""Recorded messages of libraries and drivers, and the class each belongs to."""

import errno
import json
from pathlib import Path

import pytest
import torch

from jobs.errors import ScoringRefused
from jobs.failure_codes import RETRYABLE
from rlhf_core.errors import KLDiverged, NonFiniteLoss, RewardError, RLHFError
from worker.failures import (
    EXIT_CRASHED,
    EXIT_DISK,
    EXIT_FAILED,
    HINTS,
    DiskFull,
    Failure,
    failure_of,
    storage_error,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
                "1.12 GiB is free. Including non-PyTorch memory, this process has 78.02 GiB memory in use."
            ),
            "cuda_oom",
        ),
        (
            RuntimeError(
                "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other call"
            ),
            "cuda_oom",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "cuda_oom",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuda_oom"),
        (RuntimeError("GET was unable to find an engine to execute this computation"), "cuda_oom"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                "tried to allocate 4503599627370496 bytes. Error code 12 (Cannot allocate memory)"
            ),
            "host_oom",
        ),
        (RewardError("the reward function raised OutOfMemoryError: CUDA out of memory. Tried"), "cuda_oom"),
        (RuntimeError("std::bad_alloc"), "host_oom"),
        (MemoryError(), "host_oom"),
        (ScoringRefused("path_not_allowed", "a model's path is outside"), "path_not_allowed"),
        (RewardError("the reward function raised KeyError: 'x'"), "reward_error"),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"), None),
        (KeyError("CUDA"), None),
    ],
)
def test_messages_have_a_class(error: Exception, code: str | None) -> None:
    failure = failure_of(error, step=3)
    assert (failure.code if failure else None) == code
    if failure is not None:
        assert failure.step == 3
        assert HINTS[failure.code]


def test_a_nan_names_step_and_tensor() -> None:
    failure = failure_of(NonFiniteLoss(7, "loss/policy", "NaN"), step=6)
    assert failure == Failure("nan_loss", "step 7: loss/policy is NaN", 7)


def test_a_drift_over_the_limit_names_its_step_and_has_advice() -> None:
    failure = failure_of(KLDiverged(7, 12.0, 10.0, 3), step=6)
    assert failure is not None
    assert (failure.code, failure.step) == ("kl_diverged", 7)
    assert "kl.beta" in HINTS[failure.code]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
        (Exception("No space left on device (os error 28)"), "disk_full"),  # as tokenizers says it
        (Exception("I/O error: Read-only file system (os error 30)"), "storage_failed"),
        (OSError(errno.EIO, "Input/output error"), "storage_failed"),
        (RuntimeError("a shape is wrong"), None),
    ],
)
def test_disks_have_a_class(error: Exception, code: str | None) -> None:
    found = storage_error(error)
    assert (found.code if found else None) == code


def test_what_is_told_and_what_the_exit_code_alone_says(tmp_path: Path) -> None:
    assert Failure("nan_loss", "d", 7).tell(tmp_path) == EXIT_FAILED
    told = json.loads((tmp_path / "error.json").read_text())
    assert told == {"code": "nan_loss", "detail": "d", "hint": HINTS["nan_loss"], "step": 7}
    assert Failure("host_oom", "d", None).tell(tmp_path) == EXIT_CRASHED
    assert Failure(DiskFull.code, "d", None).tell(tmp_path / "none") == EXIT_DISK


def test_every_code_is_in_the_table_that_clients_are_told_from() -> None:
    found, ahead = {"worker_lost", *HINTS}, [RLHFError]
    while ahead:
        kind = ahead.pop()
        found.add(kind.code)
        ahead += kind.__subclasses__()
    assert found == set(RETRYABLE)
