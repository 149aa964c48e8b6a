"""How exact the scores are end to end: `python -m benchmarks.accuracy`, against both models in float64.

The default pair of the registry (SmolLM2-135M-Instruct and its adapter) on texts of one prompt and others, batched
in every way: alone, padded, packed, with the prompt read once. Printed is the largest error of each quantity, and
for `kl` the largest of |error| / √KL too: the rounding of both trunks moves a log-probability by some ε, and KL,
which is of second order, by about ε√(2 KL). The last line is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from rlhf_core.models import WeightSource, load_pair
from rlhf_core.scoring import ScoredText, capacity, score_batch, score_texts
from rlhf_core.tokenization import tokenize

PROMPT = (
    "The hotel stood at the end of a long road by the sea. Its owner, who had painted every door in another "
    "colour, asked each guest the same three questions before handing over a key. When the last visitor of the "
    "season arrived,"
)
TEXTS = [
    (" she laughed and told him about the storm.", PROMPT),
    (" nobody answered, and the bell rang again.", PROMPT),
    (" the rooms were dirty, loud and far too expensive.", PROMPT),
    (" 日本語の鍵をくれた。👩‍👩‍👧", PROMPT),
    ("The quick brown fox jumps over the lazy dog, and then again, and again.", None),
    ("def kl(p, q):\n    return sum(x * (log(x) - log(y)) for x, y in zip(p, q))\n", None),
    (" wonderful!", "The movie was"),
    (
        "colourless green ideas sleep furiously while seven maids with seven mops swept it for half a year",
        None,
    ),
]
QUANTITIES = ("policy_logprob", "reference_logprob", "k1", "kl", "kl_ref", "entropy")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path(".kleash/models.json"))
    options = parser.parse_args()
    policy, reference = default_sources(options.registry)
    pair = load_pair(policy, reference)
    texts = [tokenize(pair.tokenizer, text, prompt, context=capacity(pair).context) for text, prompt in TEXTS]
    ways = {
        "alone": [score_batch(pair, [text])[0] for text in texts],
        "packed": score_batch(pair, texts[4:], reuse_prefixes=False),
        "one prompt": score_batch(pair, texts[:4]),
        "as the scorer": score_texts(pair, texts),
    }
    for body in (pair._policy[0], pair._reference[0]):
        body.causal_lm = type(body.causal_lm)(**{**vars(body.causal_lm), "packs": False})
    ways["padded"] = score_batch(pair, texts, reuse_prefixes=False)
    del pair
    exact = score_texts(load_pair(policy, reference, dtype=torch.float64), texts, strict=True)
    found: dict[str, float] = {}
    for way, scores in ways.items():
        against = {"packed": exact[4:], "one prompt": exact[:4]}.get(way, exact)
        errors = {name: largest_error(scores, against, name) for name in QUANTITIES}
        per_root = largest_error(scores, against, "kl", over_root=True)
        print(f"{way:14} " + "  ".join(f"{name} {value:.1e}" for name, value in errors.items()))
        print(f"{'':14} kl: |error| / sqrt(KL) {per_root:.1e}")
        found |= {f"{name}_{way.replace(' ', '_')}": value for name, value in errors.items()}
        found[f"kl_over_root_{way.replace(' ', '_')}"] = per_root
    print(json.dumps({name: float(f"{value:.2g}") for name, value in found.items()}))
    return 0


def default_sources(registry: Path) -> tuple[WeightSource, WeightSource]:
    """Policy and reference of requests that name none."""
    described = json.loads(registry.read_text())
    models = described["models"]

    def source(name: str) -> WeightSource:
        base = models[name].get("base")
        return WeightSource(models[name]["source"], models[base]["source"] if base else None)

    return source(described["default_policy"]), source(described["default_reference"])


def largest_error(
    scores: list[ScoredText], exact: list[ScoredText], name: str, *, over_root: bool = False
) -> float:
    """Over all scored tokens."""
    worst = 0.0
    for ours, truth in zip(scores, exact, strict=True):
        theirs = truth.quantities[name][truth.scored].astype(np.float64)
        error = np.abs(ours.quantities[name][ours.scored] - theirs)
        worst = max(worst, float((error / np.sqrt(theirs) if over_root else error).max()))
    return worst


if __name__ == "__main__":
    sys.exit(main())
