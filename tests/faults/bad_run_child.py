"""worker.train with something wrong in it: `python -m tests.faults.bad_run_child FAULT JOB_ID ATTEMPT`.

`apply(FAULT)` wraps functions of this process; production code has no hook for it. The faults are real where they
can be: real signals, real limits, a real allocator that refuses.
"""

import ctypes
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GIGABYTE = 2**30
Scores = list[float]
REWARDS: dict[
    str, Callable[[Scores], Any]
] = {}  # what the configured reward says -> what this one gives back


def reward(act: Callable[[Scores], Any]) -> Callable[[Scores], Any]:
    REWARDS[act.__name__.replace("_", "-")] = act
    return act


@reward
def returns_none(scores: Scores) -> Any:
    return None


@reward
def returns_strings(scores: Scores) -> Any:
    return ["1.0" for _ in scores]


@reward
def returns_too_few(scores: Scores) -> Any:
    return scores[1:]


@reward
def raises_its_own_error(scores: Scores) -> Any:
    class Unheard(Exception):
        pass

    raise Unheard("of")


@reward
def exits(scores: Scores) -> Any:
    sys.exit(0)


@reward
def is_nan(scores: Scores) -> Any:
    return [math.nan for _ in scores]


@reward
def is_infinite(scores: Scores) -> Any:
    return [10**400 for _ in scores]


@reward
def is_nan_once(scores: Scores) -> Any:
    seen = Path(os.environ["KLEASH_DATA"], f"seen-{sys.argv[-2]}")
    if seen.exists():
        return scores
    seen.touch()
    return [math.nan for _ in scores]


@reward
def hangs(scores: Scores) -> Any:
    time.sleep(3600)


@reward
def segfaults(scores: Scores) -> Any:
    ctypes.string_at(0)


@reward
def leaves_by_os_exit(scores: Scores) -> Any:
    os._exit(3)


@reward
def leaves_as_if_done(scores: Scores) -> Any:
    os._exit(0)


@reward
def leaves_as_if_stopped(scores: Scores) -> Any:
    os._exit(75)


@reward
def takes_all_memory(scores: Scores) -> Any:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 64 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return [float(len(bytearray(GIGABYTE))) for _ in scores]


@reward
def prints_a_gigabyte(scores: Scores) -> Any:
    line = b"x" * 99 + b"\n"
    for _ in range(GIGABYTE // (len(line) * 10_000)):
        rest = line * 10_000
        while rest:
            rest = rest[os.write(1, rest) :]
    os.write(1, b"the last line\n")
    return None


def tensors_take_all_memory() -> None:
    import torch

    from rlhf_core import ppo

    def make_targets(*args: Any) -> Any:
        return torch.empty(2**50)

    ppo.make_targets = make_targets


def gpu_is_too_small_for(rows: int) -> None:
    """As CUDA would: scoring or differentiating more than so many sequences at a time fails."""
    import torch

    from rlhf_core import update

    real = update.add_gradient

    def add_gradient(*args: Any, **kwargs: Any) -> Any:
        if len(args[4]) > rows:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 15.77 GiB of "
                "which 11.38 MiB is free."
            )
        return real(*args, **kwargs)

    update.add_gradient = add_gradient


def gradient_is_nan() -> None:
    """In the second minibatch of step 2, of the first parameter."""
    from rlhf_core import update

    real, calls = update.clip_gradients, 0

    def clip_gradients(policy: Any, state: Any, max_norm: float) -> float:
        nonlocal calls
        calls += 1
        if state.step == 1 and calls % 4 == 2:
            next(iter(policy.trainable_parameters().values())).grad[0, 0] = math.nan
        return real(policy, state, max_norm)

    update.clip_gradients = clip_gradients


def dropout_is_on() -> None:
    """As if the layers had kept the probability of their training."""
    from worker import run

    real = run.fresh_state

    def fresh_state(policy: Any, config: Any) -> Any:
        with policy.policy() as model:
            for module in model.trunk.train().modules():
                if hasattr(module, "attention_dropout"):
                    module.attention_dropout = 0.5
        return real(policy, config)

    run.fresh_state = fresh_state  # type: ignore[attr-defined]


OTHERS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "drifts-away": lambda: None,  # the job's configuration has it all
    "tensors-take-all-memory": tensors_take_all_memory,
    "gpu-holds-one": lambda: gpu_is_too_small_for(1),
    "gpu-holds-none": lambda: gpu_is_too_small_for(0),
    "gradient-is-nan": gradient_is_nan,
    "dropout-is-on": dropout_is_on,
}


def apply(fault: str) -> None:
    """In the child, before worker.train.main."""
    if fault in OTHERS:
        OTHERS[fault]()
        return
    import worker.run

    make, act = worker.run.make_reward, REWARDS[fault]

    def faulty(*config: Any) -> Any:
        configured, calls = make(*config), 0

        def score(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            well = configured(*args)  # as are the evaluation before training and step 1
            return act(well) if calls > 2 or is_resumed() else well

        return score

    worker.run.make_reward = faulty


def is_resumed() -> bool:
    """True once a checkpoint of this job exists."""
    return any(Path(os.environ["KLEASH_DATA"], "jobs", sys.argv[-2]).glob("*/step-1"))


def main(arguments: Sequence[str]) -> int:
    """`arguments`: FAULT JOB_ID ATTEMPT."""
    import worker.train

    fault, *sys.argv[1:] = arguments
    sys.orig_argv = [sys.executable, "-m", "tests.faults.bad_run_child", *arguments]  # to become fresh with
    apply(fault)
    return worker.train.main()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
