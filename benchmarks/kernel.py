"""What exact KL adds to the product that makes the logits: `python -m benchmarks.kernel`.

One chunk of SmolLM2's shape (hidden 576, vocabulary 49,152), random weights, multiplied as the engine multiplies
(oneDNN where it fits), in turns; medians in microseconds a token, for both models together. The last line is one
JSON object of ratios.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch

from rlhf_core.chunked import CHUNK_BYTES, chunked_scores, score_chunk
from rlhf_core.kernels import build
from rlhf_core.kernels import scores as native
from rlhf_core.products import accelerate

HIDDEN, VOCAB, TOKENS, ROUNDS = 576, 49_152, 512, 15


@torch.inference_mode()
def main() -> int:
    """The command."""
    torch.manual_seed(0)
    heads = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, VOCAB, bias=False) for _ in range(2))
    heads[0].weight.normal_(std=0.05)
    heads[1].weight.normal_(std=0.001).add_(heads[0].weight)
    accelerate(heads)
    hidden, ids = torch.randn(TOKENS, HIDDEN), torch.randint(VOCAB, (TOKENS,))
    apply = list(heads)
    rows = CHUNK_BYTES // (2 * 4 * VOCAB)
    chunk = [linear(hidden[:rows]) for linear in apply]

    def products() -> None:
        for part in hidden.split(rows):
            for linear in apply:
                linear(part)

    def whole(level: int) -> None:
        with mock.patch.object(native, "scores", partial(native.scores, level=level)):
            chunked_scores(hidden, hidden, *apply, ids)

    def kernel(level: int) -> None:
        native.scores(*chunk, ids[:rows], temperature=1.0, level=level)

    def torch_log_softmax() -> None:
        for logits in chunk:
            logits.log_softmax(-1).gather(-1, ids[:rows, None])

    def torch_exact() -> None:
        with mock.patch.object(native, "fits", return_value=False):
            score_chunk(*chunk, ids[:rows], 1.0, 10, 0)

    contenders: dict[str, tuple[int, Callable[[], None]]] = {
        "both products": (TOKENS, products),
        "both products, sampled only": (TOKENS, partial(whole, native.LOGPROBS_ONLY)),
        "both products, exact": (TOKENS, partial(whole, native.ALL)),
        "kernel, sampled only": (rows, partial(kernel, native.LOGPROBS_ONLY)),
        "kernel, all but js": (rows, partial(kernel, native.WITHOUT_JS)),
        "kernel, all": (rows, partial(kernel, native.ALL)),
        "torch, log_softmax and gather": (rows, torch_log_softmax),
        "torch, all, in blocks": (rows, torch_exact),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (tokens, run) in contenders.items():
            began = time.perf_counter()
            run()
            times[name].append(1e6 * (time.perf_counter() - began) / tokens)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{torch.get_num_threads()} threads, kernels: {build.status()}, chunks of {rows}")
    for name, value in median.items():
        print(f"{name:32} {value:8.1f} us/token")
    ratios = {
        "head_exact_over_sampled": median["both products, exact"] / median["both products, sampled only"],
        "head_exact_over_products": median["both products, exact"] / median["both products"],
        "torch_over_kernel": median["torch, all, in blocks"] / median["kernel, all"],
    }
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
