"""How fast torch multiplies float32 matrices here, by MKL and by oneDNN: `python -m benchmarks.products`.

Shapes are SmolLM2-135M's: rows of a batch by a layer's weight, and the gradient back through it. Both take turns;
the ratio is the median over rounds of that of neighbours. `arranged` is the forward product by oneDNN, the weight
in the order of its file beside that of `arrange_for_forward`. The last line is one JSON object of ratios: MKL over
oneDNN, and plain over arranged.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_core.products import available

SHAPES = {"attention": (576, 576), "up": (576, 1536), "down": (1536, 576), "head": (576, 49_152)}
ROWS = (8, 128, 1024)
ROUNDS, LEAST_FLOP = 9, 3e9


def main() -> int:
    """The command."""
    if not available():
        print("oneDNN's products are not there on this CPU")
        return 1
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; GFLOP/s, medians of {ROUNDS}")
    ratios: dict[str, float] = {}
    for name, (width, outputs) in SHAPES.items():
        weight = torch.randn(outputs, width)
        for rows in ROWS:
            x, gradient = torch.randn(rows, width), torch.randn(rows, outputs)
            arranged = weight.t().contiguous().t()
            ways = {
                "forward": (partial(nn.functional.linear, x, weight), partial(by_onednn, x, weight)),
                "backward": (partial(torch.mm, gradient, weight), partial(by_onednn, gradient, weight.t())),
                "arranged": (partial(by_onednn, x, weight), partial(by_onednn, x, arranged)),
            }
            flop = 2.0 * rows * width * outputs
            for direction, (usual, faster) in ways.items():
                ratio, speeds = compare(usual, faster, flop)
                names = ("plain", "arranged") if direction == "arranged" else ("MKL", "oneDNN")
                what = f"{name:10} {rows:5} rows {direction:9}"
                print(f"{what} {names[0]} {speeds[0]:5.0f}  {names[1]} {speeds[1]:5.0f}  {ratio:5.2f}")
                ratios[f"{name}_{rows}_{direction}"] = round(ratio, 2)
    print(json.dumps(ratios))
    return 0


def by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ"""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


@torch.inference_mode()
def compare(
    mkl: Callable[[], object], onednn: Callable[[], object], flop: float
) -> tuple[float, tuple[float, float]]:
    """The ratio of times, and both speeds in GFLOP/s."""
    repeats = max(1, int(LEAST_FLOP / flop))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, taken in zip((mkl, onednn), times, strict=True):
            began = time.perf_counter()
            for _ in range(repeats):
                run()
            taken.append((time.perf_counter() - began) / repeats)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return ratio, (flop / 1e9 / statistics.median(times[0]), flop / 1e9 / statistics.median(times[1]))


if __name__ == "__main__":
    sys.exit(main())
