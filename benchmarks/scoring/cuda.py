"""A pair of 7B's shape with random weights in bfloat16, on a CUDA device: 8 texts of 1024 tokens.

Its answers mean nothing; the work is that of a real pair.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.ratios import Ratio, spread
from benchmarks.scoring import contenders
from benchmarks.scoring.contenders import Answers
from benchmarks.scoring.rounds import OURS
from benchmarks.scoring.workloads import Text
from rlhf_core.models import Body, ModelPair
from rlhf_core.scoring import score_texts
from rlhf_core.tokenization import TokenizedText

SHAPE = {  # of Qwen2.5-7B
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
TEXTS, LENGTH = 8, 1024


class Pair(ModelPair):
    """A pair without a tokenizer."""

    def __init__(self, bodies: tuple[Body, Body]) -> None:
        self._policy, self._reference = (bodies[0], None), (bodies[1], None)


def absence() -> str | None:
    """Why this cannot run here."""
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def compare(rounds: int, *, device: str = "cuda", shape: dict[str, Any] = SHAPE) -> dict[str, float]:
    """A table, and the ratios."""
    bodies = _body(device, shape), _body(device, shape)
    plain = bodies[0].model, bodies[1].model
    rng = np.random.default_rng(0)
    texts = [_text(rng.integers(0, shape["vocab_size"], LENGTH)) for _ in range(TEXTS)]
    runs: dict[str, Callable[[], object]] = {
        OURS: partial(_exact, Pair(bodies), texts),
        "(a) plain forwards": partial(contenders.plain, plain, texts),
        "(c) naive exact": partial(contenders.naive, plain, texts),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    peaks: dict[str, int] = {}
    for number in range(rounds + 1):  # the first compiles
        for name, run in runs.items():
            seconds, peaks[name] = _timed(run, device)
            if number:
                times[name].append(seconds)
    for name in runs:
        ratio = Ratio.of(times[name], times[OURS])
        print(
            f"cuda     {name:26} {spread(ratio)}  n={ratio.rounds}, {peaks[name] / 2**20:.0f} MiB more at the peak"
        )
    faster = Ratio.of(times["(a) plain forwards"], times[OURS])
    return {
        "cuda_tokens_over_plain": faster.median,
        "cuda_extra_bytes": peaks[OURS],
        "cuda_naive_extra_bytes": peaks["(c) naive exact"],
    }


def _exact(pair: ModelPair, texts: list[Text]) -> Answers:
    scored = score_texts(pair, [text.tokens for text in texts], max_batch_tokens=TEXTS * LENGTH)
    return {"kl": [item.quantities["kl"] for item in scored]}


def _timed(run: Callable[[], object], device: str) -> tuple[float, int]:
    """Seconds, and the peak of memory above what was there before."""
    if device == "cpu":  # to try this file without a GPU
        began = time.perf_counter()
        run()
        return time.perf_counter() - began, 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, began = torch.cuda.memory_allocated(), time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began, torch.cuda.max_memory_allocated() - before


def _body(device: str, shape: dict[str, Any]) -> Body:
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(Qwen2Config(**shape), dtype=torch.bfloat16)
    return Body(model.eval().requires_grad_(False))


def _text(ids: np.ndarray) -> Text:
    ids = ids.astype(np.int32)
    return Text("", TokenizedText(ids=ids, start=ids * 0, end=ids * 0, first_scored=1))
