"""How fast exact KL is: `make bench-scoring`, side by side with what one would do without kleash.

The pair is SmolLM2-135M-Instruct and the same with 2 % of noise on its weights, in float32 on the CPU. All
contenders take turns in one process; a time is the median of the rounds, a ratio one of medians. The exact KL is
held against the naive computation's. The last line is one JSON object of ratios.

(a) plain: a forward of each model with all its logits, and nothing done with them: a naive user's lower bound
(b) trl: the way of TRL's `selective_log_softmax`, sampled tokens only, padded batches of 8 in the order of arrival
(c) naive exact: as (b), and KL from both models' whole log-softmax
(e) GEMM: the floating point operations of both models at the measured speed of one large product
"""

import argparse
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from rlhf_core.kernels import build
from rlhf_core.kernels import scores as native
from rlhf_core.models import Body, ModelPair, load_body, load_tokenizer
from rlhf_core.scoring import score_texts
from rlhf_core.tokenization import TokenizedText

BATCH = 8
LONGEST_BATCH_TOKENS = 2048  # of ours, as the scorer's default
Contender = Callable[[Sequence[TokenizedText]], list[np.ndarray]]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path(".kleash/models.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="workloads")
    options = parser.parse_args()
    torch.manual_seed(0)
    pair, bodies = make_pair(options.registry)
    print(f"{torch.get_num_threads()} threads, kernels: {build.status()}, torch {torch.__version__}")
    gflops = gemm_gflops()
    print(f"one large float32 product: {gflops:.0f} GFLOP/s")
    ratios: dict[str, float] = {}
    for name, texts in workloads(pair).items():
        if not options.only or name in options.only:
            ratios |= compare(name, texts, pair, bodies, options.rounds, gflops)
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))
    return 0


def make_pair(registry: Path) -> tuple[ModelPair, tuple[Body, Body]]:
    """The reference, and a policy 2 % away from it in every weight."""
    models = json.loads(registry.read_text())
    folder = models["models"][models["default_reference"]]["source"]
    policy, reference = load_body(folder), load_body(folder)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(torch.randn_like(parameter) * parameter.std() * 0.02)
    return ModelPair((policy, None), (reference, None), load_tokenizer(folder)), (policy, reference)


def workloads(pair: ModelPair) -> dict[str, list[TokenizedText]]:
    """Random tokens: what they are does not change the work."""
    rng = np.random.default_rng(0)
    vocab = len(pair.tokenizer)

    def texts(lengths: Sequence[int]) -> list[TokenizedText]:
        made = []
        for length in lengths:
            ids = rng.integers(0, vocab, length).astype(np.int32)
            made.append(TokenizedText(ids=ids, start=ids * 0, end=ids * 0, first_scored=1))
        return made

    draw = random.Random(0)
    mix = [min(512, max(4, round(draw.lognormvariate(math.log(120) - 0.32, 0.8)))) for _ in range(64)]
    return {
        "1x128": texts([128]),
        "8x128": texts([128] * 8),
        "8x512": texts([512] * 8),
        "mix": texts(mix),
    }


def compare(
    name: str,
    texts: list[TokenizedText],
    pair: ModelPair,
    bodies: tuple[Body, Body],
    rounds: int,
    gflops: float,
) -> dict[str, float]:
    """One workload: a table, and the ratios that are quoted."""
    logprobs_only = mock.patch.object(native, "scores", partial(native.scores, level=native.LOGPROBS_ONLY))

    def sampled(texts: Sequence[TokenizedText]) -> list[np.ndarray]:
        with logprobs_only:
            return ours(pair, "policy_logprob", texts)

    contenders: dict[str, Contender] = {
        "kleash, exact": partial(ours, pair, "kl"),
        "kleash, sampled only": sampled,
        "(a) plain forwards": partial(padded, bodies, plain),
        "(b) TRL's way, sampled": partial(padded, bodies, trl),
    }
    if name != "mix":
        contenders["(c) naive exact"] = partial(padded, bodies, naive)
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    answers: dict[str, list[np.ndarray]] = {}
    for _ in range(rounds):
        for contender, run in contenders.items():
            began = time.perf_counter()
            answers[contender] = run(texts)
            times[contender].append(time.perf_counter() - began)
    if "(c) naive exact" in answers:
        worst = max(
            float(np.abs(a[1:] - b).max())
            for a, b in zip(answers["kleash, exact"], answers["(c) naive exact"], strict=True)
        )
        print(f"{name}: exact KL differs from the naive one by at most {worst:.1e} nats")
    median = {contender: statistics.median(values) for contender, values in times.items()}
    tokens, best = sum(len(text.ids) for text in texts), median["kleash, exact"]
    for contender, seconds in median.items():
        print(
            f"{name:6} {contender:24} {seconds:8.3f} s {tokens / seconds:8.0f} tokens/s {seconds / best:6.2f}"
        )
    limit = tokens * flops_a_token(bodies) / gflops / 1e9
    print(f"{name:6} {'(e) GEMM':24} {limit:8.3f} s {tokens / limit:8.0f} tokens/s {limit / best:6.2f}")
    found = {
        f"exact_over_sampled_{name}": best / median["kleash, sampled only"],
        f"time_{name}_over_plain": best / median["(a) plain forwards"],
        f"peak_fraction_{name}": limit / best,
    }
    if name == "mix":
        found["mix_tokens_over_trl"] = median["(b) TRL's way, sampled"] / best
    return found


def ours(pair: ModelPair, quantity: str, texts: Sequence[TokenizedText]) -> list[np.ndarray]:
    """The scorer's engine."""
    scored = score_texts(pair, texts, max_batch_tokens=LONGEST_BATCH_TOKENS)
    return [item.quantities[quantity] for item in scored]


@torch.inference_mode()
def padded(
    bodies: tuple[Body, Body],
    work: Callable[[Tensor, Tensor, Tensor], Tensor],
    texts: Sequence[TokenizedText],
) -> list[np.ndarray]:
    """Batches of 8 in the order of arrival, padded; `work` gets both models' logits and the ids."""
    answers = []
    for first in range(0, len(texts), BATCH):
        batch = texts[first : first + BATCH]
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(text.ids).long() for text in batch], batch_first=True
        )
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(text.ids), dtype=torch.long) for text in batch], batch_first=True
        )
        policy, reference = (
            body.model(input_ids=ids, attention_mask=mask, use_cache=False).logits for body in bodies
        )
        found = work(policy[:, :-1], reference[:, :-1], ids[:, 1:])
        answers += [row[: len(text.ids) - 1].numpy() for row, text in zip(found, batch, strict=True)]
    return answers


def plain(policy: Tensor, reference: Tensor, ids: Tensor) -> Tensor:
    """Nothing."""
    return torch.zeros(ids.shape)


def trl(policy: Tensor, reference: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of the tokens: the gathered logit minus the log-sum-exp, row by row."""
    both = []
    for logits in (policy, reference):
        picked = logits.gather(-1, ids[..., None]).squeeze(-1)
        both.append(picked - torch.stack([torch.logsumexp(row, dim=-1) for row in logits]))
    return both[0] - both[1]


def naive(policy: Tensor, reference: Tensor, ids: Tensor) -> Tensor:
    """KL as it is written down."""
    a, b = policy.log_softmax(-1), reference.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def flops_a_token(bodies: tuple[Body, Body]) -> float:
    """Multiply-adds of the linear layers, head included; attention's own are left out."""
    total = 0
    for body in bodies:
        linear = sum(m.weight.numel() for m in body.model.modules() if isinstance(m, torch.nn.Linear))
        total += 2 * linear
    return float(total)


def gemm_gflops() -> float:
    """Of one float32 product of a trunk's shape, the best of some."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best / 1e9


if __name__ == "__main__":
    sys.exit(main())
