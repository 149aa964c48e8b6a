"""Which contenders meet on which workload, how often, and which ratios come of it."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.ratios import spread
from benchmarks.scoring import contenders, models
from benchmarks.scoring.contenders import Answers, Contender
from benchmarks.scoring.http import Stack, stack
from benchmarks.scoring.job import ScoreJobs
from benchmarks.scoring.rounds import OURS, Run, print_table, take_turns
from benchmarks.scoring.workloads import Draw, Text, Words, lognormal_lengths

SAMPLED, PLAIN, TRL = "kleash, sampled only", "(a) plain forwards", "(b) TRL's way, sampled"
NAIVE, CT2, NO_REUSE = "(c) naive exact", "(d) ctranslate2, sampled", "kleash, no reuse"
HTTP, HTTP_SUMS, JOB = "kleash over HTTP", "kleash over HTTP, sums", "kleash, a score job"
ALL = (OURS, SAMPLED, PLAIN, TRL, NAIVE, CT2)
CONCURRENCY = 32


class Case(NamedTuple):
    """Contenders in the order of a round: those whose ratio is asked for are neighbours."""

    contenders: tuple[str, ...]
    rounds: int


CASES = {
    "2x128": Case((OURS, SAMPLED), 30),  # as many tokens as the engine packs into a row on a CPU
    "1x128": Case(ALL, 9),
    "8x128": Case(ALL, 5),
    "8x512": Case((OURS, PLAIN), 3),
    "4x1024": Case((OURS, PLAIN), 3),
    "prefix": Case((OURS, NO_REUSE), 5),
    "single": Case((OURS, PLAIN, HTTP, HTTP_SUMS), 15),  # 128 tokens
    "mix": Case((HTTP, OURS, JOB, CT2, TRL), 3),
}
RATIOS = (  # name, workload, time of one over time of the other
    ("exact_over_sampled", "2x128", OURS, SAMPLED),
    ("mix_tokens_over_trl", "mix", TRL, OURS),
    ("mix_tokens_over_ct2", "mix", CT2, OURS),
    ("time_8x128_over_plain", "8x128", OURS, PLAIN),
    ("time_8x512_over_plain", "8x512", OURS, PLAIN),
    ("prefix_reuse", "prefix", NO_REUSE, OURS),
    ("http_over_engine", "mix", OURS, HTTP),
    ("job_over_engine", "mix", OURS, JOB),
    ("http_single_over_forward", "single", HTTP, PLAIN),
    ("http_single_sums_over_forward", "single", HTTP_SUMS, PLAIN),
    ("exact_over_sampled_8x128", "8x128", OURS, SAMPLED),
    ("time_1x128_over_plain", "1x128", OURS, PLAIN),
    ("time_4x1024_over_plain", "4x1024", OURS, PLAIN),
    ("time_8x128_over_naive", "8x128", OURS, NAIVE),
    ("time_8x128_over_ct2", "8x128", OURS, CT2),
)
PEAK_ON = "8x128"


class Bench:
    """The models, a database of jobs and, from the first request on, the servers; `close` ends these."""

    def __init__(self, registry: Path, cache: Path, packages: Path | None, rounds: int | None) -> None:
        self._models, self._rounds = models.load(registry, cache), rounds
        self._words = Words(self._models.pair.tokenizer)
        self._servers: Stack | None = None
        self._open = contextlib.ExitStack()
        self._jobs = self._open.enter_context(contextlib.closing(ScoreJobs(self._models.pair)))
        self._contenders = self._make_contenders()
        generators = models.load_ctranslate2(self._models, cache, packages)
        if isinstance(generators, str):
            print(f"(d) ctranslate2: not run, {generators}")
        else:
            self._contenders[CT2] = contenders.ctranslate2(generators, self._models.pair.tokenizer)
        speeds = gemm_gflops()
        self._gflops = max(speeds.values())
        for name, speed in speeds.items():
            print(f"(e) one large float32 product, {name}: {speed:.0f} GFLOP/s")

    def run(self, workload: str) -> tuple[dict[str, float], bool]:
        """One workload: a table, its ratios, and whether answers agreed."""
        case, draw = CASES[workload], self._draw(workload)
        taking_part = {name: self._contenders[name] for name in case.contenders if name in self._contenders}
        if HTTP in taking_part and self._servers is None:
            self._servers = self._open.enter_context(stack(self._models))
        take_turns(taking_part, self._words.texts([16]), 1)  # nobody's first call is timed
        run = take_turns(taking_part, draw, self._rounds or case.rounds)
        print_table(workload, run)
        if HTTP in taking_part:
            print(f"{workload:8} {self._servers}")
        return self._found(workload, run), run.agrees

    def close(self) -> None:
        """End the servers."""
        self._open.close()

    def _make_contenders(self) -> dict[str, Contender]:
        pair, plain = self._models.pair, self._models.plain
        return {
            OURS: partial(contenders.exact, pair),
            NO_REUSE: partial(contenders.exact, pair, reuse_prefixes=False),
            SAMPLED: partial(contenders.sampled, pair),
            PLAIN: partial(contenders.plain, plain),
            TRL: partial(contenders.trl, plain),
            NAIVE: partial(contenders.naive, plain),
            HTTP: self._over_http,
            JOB: self._jobs.score,
            HTTP_SUMS: partial(self._over_http, per_token=False),
        }

    def _over_http(self, texts: Sequence[Text], *, per_token: bool = True) -> Answers:
        assert self._servers is not None
        return self._servers.ask(texts, concurrency=CONCURRENCY, per_token=per_token)

    def _draw(self, workload: str) -> Draw:
        if workload == "prefix":
            return self._words.completions
        if workload == "mix":
            return self._words.texts(lognormal_lengths())
        number, length = (1, 128) if workload == "single" else map(int, workload.split("x"))
        return self._words.texts([length] * number)

    def _found(self, workload: str, run: Run) -> dict[str, float]:
        found = {}
        for name, where, above, below in RATIOS:
            if where == workload and above in run.times and below in run.times:
                ratio = run.ratio(above, below)
                if workload == "single":  # of the medians, as a p50 is meant
                    ratio = ratio._replace(median=run.median(above) / run.median(below))
                print(f"{workload:8} {name:30} {spread(ratio)}")
                found[name] = ratio.median
        if workload == PEAK_ON:
            limit = run.tokens * flops_a_token(self._models.plain) / self._gflops / 1e9
            print(f"{workload:8} {'(e) GEMM':26} {limit:8.3f} s {run.tokens / limit:7.0f} tokens/s")
            found["peak_fraction"] = limit / run.median(OURS)
        return found


def flops_a_token(models: tuple[Any, Any]) -> float:
    """Of the linear layers, head included; attention's own are left out."""
    linear = (m for model in models for m in model.modules() if isinstance(m, torch.nn.Linear))
    return float(sum(2 * module.weight.numel() for module in linear))


def gemm_gflops() -> dict[str, float]:
    """Of one float32 product of a trunk's shape, the best of some, by each library that torch brings.

    torch's own choice is MKL, which on AMD does without AVX-512; oneDNN, as in ctranslate2, uses it.
    """
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    ways: dict[str, Callable[[], Tensor]] = {"as torch does": lambda: a @ b}
    if torch.backends.mkldnn.is_available():
        ways["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    best = dict.fromkeys(ways, math.inf)
    for _ in range(8):
        for name, product in ways.items():
            began = time.perf_counter()
            product()
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: 2 * 2048**3 / seconds / 1e9 for name, seconds in best.items()}
