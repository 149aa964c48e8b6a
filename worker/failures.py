"""How a run can end badly: exceptions and exit codes become a code, a sentence and a hint. Torch-free.

| code | what happened | then |
|---|---|---|
| `nan_loss` | NaN or infinity in a reward, log-probability, loss or gradient | one replay from its checkpoint |
| `cuda_oom` | the GPU's memory was not enough | one replay with half the micro-batch |
| `host_oom`, `oom_killed` | the machine's memory was not enough | a crash |
| `stalled`, `crashed` | no progress; a signal or an exit code without a word | a crash |
| `store_unavailable` | the child could not reach the database, the supervisor could | a crash |
| `disk_full`, `storage_failed` | a checkpoint could not be written | fails at once |
| `kl_diverged` | the exact sequence KL stayed above `kl.limit` | fails at once; the checkpoints stay |
| `audit_failed`, `timeout`, `reward_error`, `dataset_error`, `model_load_failed`, … | | fails at once |

A crash is tried again up to `limits.max_attempts` times without progress in between.
"""

import errno
import json
import re
from pathlib import Path
from typing import NamedTuple

from jobs.errors import ScoringRefused
from rlhf_core.errors import KLDiverged, NonFiniteLoss, RLHFError

EXIT_UNREACHABLE = 69  # the database could not be reached for longer than a lease lasts
EXIT_FAILED = 70  # told in error.json: trying again would end the same way
EXIT_CRASHED = 71  # told in error.json: counts as a crash
EXIT_DISK = 74  # the disk that error.json belongs on takes nothing
EXIT_STOPPED = 75  # saved, may go on elsewhere

HINTS = {
    "nan_loss": "Lower optimization.learning_rate, or check the reward for extreme values.",
    "kl_diverged": "Raise kl.beta, let kl.controller hold a target below the limit, or lower "
    "optimization.learning_rate; the samples show what the policy found. A job with resume_from can go on from a "
    "checkpoint with other settings.",
    "audit_failed": "Nothing was trained. The event job.audited lists every number and its bound; a model whose "
    "numbers depend on padding or dropout cannot be trained by PPO as it is.",
    "cuda_oom": "Lower rollout.batch_size or rollout.max_new_tokens, or raise optimization.minibatches; a "
    "score job needs a GPU with room for both models.",
    "host_oom": "Lower rollout.batch_size or rollout.max_new_tokens, or give the worker more memory.",
    "oom_killed": "Lower rollout.batch_size or rollout.max_new_tokens, or give the worker more memory.",
    "disk_full": "Free space below the data folder, then create a job with resume_from the last checkpoint.",
    "storage_failed": "The worker must be able to write below the data folder.",
    "store_unavailable": "The training process needs the same access to the database as its worker; see the log.",
    "stalled": "The last lines of the log show where it stood. A reward that waits for something needs a timeout.",
    "crashed": "The last lines of the log say where. The job can go on with resume_from its last checkpoint.",
    "timeout": "Raise limits.max_runtime_s; a job with resume_from goes on from the last checkpoint.",
    "input_too_long": "Shorten the prompts or lower rollout.max_new_tokens (texts: data.ptx_max_tokens).",
    "model_load_failed": "The model must be a folder with safetensors weights and a fast tokenizer.",
    "unsafe_model": "A folder of configs that ask for no code, and safetensors: remove what the error names.",
    "path_not_allowed": "The worker needs the KLEASH_MODELS_FILE, KLEASH_MODEL_ROOTS and "
    "KLEASH_ALLOW_HUB_MODELS of the API.",
    "empty_input": "A prompt needs a token, a text of data.ptx_texts or data.ptx_texts_file two.",
    "unknown_token": "A token is an id of the model, a text that its tokenizer makes one token of, or eos.",
    "unusable_stop": "rollout.stop holds texts that the model can write; rollout.stop_token_ids names tokens.",
    "dataset_error": "Prompts: a JSON string a line, or an object with a text field `prompt`; in "
    "data.ptx_texts_file it is `text`. A score job's items_file must have a line. No file may change meanwhile.",
    "reward_error": "The reward must return one finite number for each completion; an endpoint must be reachable "
    "and must answer in time.",
    "checkpoint_failed": "Resume from another checkpoint of that job.",
}
NO_GPU_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|HIP out of memory"
    r"|(CUBLAS|CUSOLVER|CUSPARSE|CUDNN)_STATUS_(ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)"
    r"|CUFFT_ALLOC_FAILED|cuDNN error.*out of memory|unable to find an engine to execute this computation"
)
NO_HOST_MEMORY = re.compile(r"std::bad_alloc|can't allocate memory|[Cc]annot allocate memory")
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
OS_ERROR = re.compile(r"os error (\d+)")


class StorageError(RLHFError):
    """A checkpoint could not be written; what there was of it has been removed."""

    code = "storage_failed"


class DiskFull(StorageError):
    """The disk is full."""

    code = "disk_full"


class DatasetError(RLHFError):
    """A file of prompts or texts cannot be used."""

    code = "dataset_error"


class Failure(NamedTuple):
    """What error.json says."""

    code: str
    detail: str
    step: int | None

    def tell(self, folder: Path) -> int:
        """Leave error.json for the supervisor; returns the exit code that goes with it."""
        told = {"code": self.code, "detail": self.detail, "hint": HINTS.get(self.code), "step": self.step}
        try:
            (folder / "error.json").write_text(json.dumps(told))
        except OSError:
            return EXIT_DISK if self.code in ("disk_full", "storage_failed") else EXIT_CRASHED
        return EXIT_CRASHED if self.code == "host_oom" else EXIT_FAILED


def failure_of(error: Exception, *, step: int | None) -> Failure | None:
    """The failure with a name that an exception is, or None."""
    first_line = (str(error).splitlines() or [""])[0][:500]
    match error:
        case NonFiniteLoss() | KLDiverged():
            return Failure(error.code, str(error), error.step)
        case ScoringRefused():
            return Failure(error.code, error.detail, step)
        case MemoryError():
            return Failure("host_oom", f"The training process ran out of memory. {first_line}".strip(), step)
    # Before our own errors: loaders and rewards wrap what they met.
    if NO_GPU_MEMORY.search(str(error)):
        return Failure("cuda_oom", f"The GPU's memory was not enough: {first_line}", step)
    if NO_HOST_MEMORY.search(str(error)):
        return Failure("host_oom", f"The training process ran out of memory: {first_line}", step)
    return Failure(error.code, str(error), step) if isinstance(error, RLHFError) else None


def storage_error(error: Exception) -> StorageError | None:
    """What an error of writing means: the operating system's, or one that a library passes on as text."""
    number = error.errno if isinstance(error, OSError) else None
    if found := OS_ERROR.search(str(error)):
        number = int(found[1])
    if number is None:
        return None
    kind = DiskFull if number in FULL else StorageError
    return kind(f"The checkpoint could not be written: {error}")
