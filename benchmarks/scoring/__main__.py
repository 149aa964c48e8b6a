"""How fast exact KL is: `make bench-scoring`, side by side with what one would do without kleash.

The pair is SmolLM2-135M-Instruct and the same with 2 % of noise on its weights, in float32 on the CPU. Contenders
take turns on the same texts; a ratio is taken within a round, and its median and quartiles are over the rounds.
Where two compute the same quantity it is compared, and a difference above the bound ends in exit code 1. The last
line is one JSON object of ratios; null: not measured, for a reason given above it.

(a) plain: a forward of each model with all its logits, and nothing done with them: a naive user's lower bound
(b) trl: the way of TRL's `selective_log_softmax`, sampled tokens only, padded batches of 8 in the order of arrival
(c) naive exact: as (b), and KL from both models' whole log-softmax
(d) ctranslate2: `score_batch` of both models in float32 with its own batching, sampled tokens only
(e) GEMM: the floating point operations of both models at the speed of one large product, by the fastest library
(f) vLLM: only said why not

torch and ctranslate2 bring an OpenMP each, with a pool of threads each, and so do the server's processes, all on
the same cores. By default a thread with nothing to do spins for milliseconds, and would take a core from another.
Here, as under `kleash up`, it sleeps at once. ctranslate2 has one worker of as many threads as torch.
"""

import os

from kleash.up import QUIET

os.environ |= QUIET  # before the libraries that read it

import argparse
import contextlib
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.scoring import cuda, memory
from benchmarks.scoring.comparisons import CASES, Bench
from rlhf_core.kernels import build

NAMES = (
    *("exact_over_sampled", "mix_tokens_over_trl", "mix_tokens_over_ct2"),
    *("time_8x128_over_plain", "time_8x512_over_plain", "prefix_reuse"),
    *("http_over_engine", "http_single_over_forward", "extra_bytes_max", "peak_fraction"),
)
CUDA_ROUNDS = 5


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path(".kleash/models.json"))
    parser.add_argument("--cache", type=Path, default=Path(".kleash/bench"), help="converted models")
    parser.add_argument("--packages", type=Path, help="folder that ctranslate2 is installed in")
    parser.add_argument("--rounds", type=int, help="of every workload, instead of each one's own")
    everything = [*CASES, "memory", "cuda"]
    parser.add_argument("--only", nargs="*", default=everything, choices=everything, help="workloads")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, kernels: {build.status()}, torch {torch.__version__}")
    print(f"(f) vLLM: not run, {_no_vllm()}")
    found, failed = dict[str, float | None](dict.fromkeys(NAMES)), False
    if workloads := [name for name in CASES if name in options.only]:
        with contextlib.closing(
            Bench(options.registry, options.cache, options.packages, options.rounds)
        ) as bench:
            for name in workloads:
                ratios, agree = bench.run(name)
                found, failed = {**found, **ratios}, failed or not agree
    if "memory" in options.only and sys.platform != "linux":
        print("memory: skipped, it is read from Linux's /proc")
    elif "memory" in options.only:
        found["extra_bytes_max"], too_much = _memory()
        failed |= too_much
    if "cuda" in options.only:
        if reason := cuda.absence():
            print(f"cuda: skipped, {reason}")
        else:
            found |= cuda.compare(options.rounds or CUDA_ROUNDS)
    print(json.dumps({name: value and round(value, 3) for name, value in found.items()}))
    return int(failed)


def _memory() -> tuple[int, bool]:
    """The largest measurement, and whether it is above the limit or the two that must agree do not."""
    found = memory.measure()
    for way, value in found.items():
        print(f"memory   {way:26} {value / 2**20:8.1f} MiB")
    print(f"memory   {'naive, both logits alone':26} {memory.NAIVE_BYTES / 2**20:8.1f} MiB (computed)")
    apart = abs(found["rss, nothing kept"] - found["allocator"])
    print(f"memory   at most {memory.LIMIT_BYTES} bytes; the last two measured are {apart} bytes apart")
    return max(found.values()), max(found.values()) > memory.LIMIT_BYTES or apart > memory.APART_BYTES


def _no_vllm() -> str:
    try:
        return f"vllm {version('vllm')} is here, but has no contender in this benchmark"
    except PackageNotFoundError:
        return (
            f"vllm is not installed; it asks for transformers < 5.20, and this has {version('transformers')}"
        )


if __name__ == "__main__":
    sys.exit(main())
