"""PPO where the answer is known: two tables of logits, and where each KL setting lands.

    python -m examples.recipes.bandit

A bandit says one token. There every setting has the same optimum, π* = ref · e^{r/β} / Z. A chain says two, and
there they part: a penalty in the reward charges the first token for the KL of the second, a loss in nats does not.
"""

import math
import time

import torch
from torch import Tensor

from examples.recipes.tabular import TabularPolicy, config, run, total_variation

SETTINGS = {f"penalty {name}": {"penalty": name} for name in ("k1", "hybrid", "exact")} | {
    f"loss {name}": {"penalty": "none", "loss": name} for name in ("k2", "k3", "ratio_k1")
}

# One token: ref, score, β.
BANDIT, SCORES, BETA = [0.4, 0.4, 0.2], [1.0, 0.0, 0.5], 0.5

# Two tokens: ref after nothing, after 0, after 1; score by (first, second); β.
CHAIN = [[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]]
CHAIN_SCORES = [[1.0, 0.0], [0.7, 0.7]]
CHAIN_BETA = 0.25


def tilted(reference: Tensor, scores: Tensor, beta: float) -> Tensor:
    """ref · e^{score/β} / Z."""
    weights = reference * torch.exp(scores / beta)
    return weights / weights.sum()


def chain_distribution(first: Tensor, second: list[Tensor]) -> Tensor:
    """Probabilities of 00, 01, 10, 11."""
    return torch.cat([first[token] * after for token, after in enumerate(second)])


def sequence_optimum() -> Tensor:
    """Of E[score] − β KL of the whole sequence: its four texts are the arms of one bandit."""
    first, *second = (torch.tensor(row, dtype=torch.float64) for row in CHAIN)
    scores = torch.tensor(CHAIN_SCORES, dtype=torch.float64).flatten()
    return tilted(chain_distribution(first, second), scores, CHAIN_BETA)


def per_token_optimum() -> Tensor:
    """Of a loss that takes prefixes as given: each token is a bandit, scored by what follows on average."""
    first, *after = (torch.tensor(row, dtype=torch.float64) for row in CHAIN)
    scores = torch.tensor(CHAIN_SCORES, dtype=torch.float64)
    second = [tilted(row, score, CHAIN_BETA) for row, score in zip(after, scores, strict=True)]
    expected = torch.stack([(row * score).sum() for row, score in zip(second, scores, strict=True)])
    return chain_distribution(tilted(first, expected, CHAIN_BETA), second)


def bandit(setting: str) -> Tensor:
    """What a table of one token says after training."""
    policy = TabularPolicy([BANDIT])
    options = config(SETTINGS[setting], beta=BETA, tokens=1)
    run(policy, options, lambda ids: SCORES[ids[0]])
    return policy.probabilities()


def chain(setting: str) -> Tensor:
    """What a table of two tokens says after training."""
    policy = TabularPolicy(CHAIN)
    options = config(SETTINGS[setting], beta=CHAIN_BETA, tokens=2)
    run(policy, options, lambda ids: CHAIN_SCORES[ids[0]][ids[1]])
    return chain_distribution(policy.probabilities(0), [policy.probabilities(1), policy.probabilities(2)])


def main() -> None:
    """Both tables, every setting."""
    began = time.monotonic()
    optimum = tilted(torch.tensor(BANDIT, dtype=torch.float64), torch.tensor(SCORES), BETA)
    print(f"One token: ref {shown(BANDIT)}, score {shown(SCORES)}, β {BETA}\n")
    print(f"| | π(0) π(1) π(2) | from π* |\n|---|---|---|\n| π* | {shown(optimum)} | |")
    for setting in SETTINGS:
        reached = bandit(setting)
        print(f"| {setting} | {shown(reached)} | {total_variation(reached, optimum):.4f} |")

    sequence, per_token = sequence_optimum(), per_token_optimum()
    print(f"\nTwo tokens: score 1 for 00, 0 for 01, 0.7 for 10 and 11, β {CHAIN_BETA}\n")
    print("| | π(00) π(01) π(10) π(11) | from π* | from the per-token optimum |\n|---|---|---|---|")
    print(f"| π* | {shown(sequence)} | | {total_variation(sequence, per_token):.4f} |")
    print(f"| per-token optimum | {shown(per_token)} | {total_variation(sequence, per_token):.4f} | |")
    for setting in SETTINGS:
        reached = chain(setting)
        distances = (f"{total_variation(reached, end):.4f}" for end in (sequence, per_token))
        print(f"| {setting} | {shown(reached)} | {' | '.join(distances)} |")
    print(f"\n{math.ceil(time.monotonic() - began)} s. Distances are total variations, ½ Σ |π − π*|.")


def shown(numbers: Tensor | list[float]) -> str:
    """Three decimals each."""
    return " ".join(f"{float(number):.3f}" for number in numbers)


if __name__ == "__main__":
    main()
