"""Variance over sequences of Σk1, which is what PPO usually charges, over that of ΣKL_t on the same rollouts.

A policy of a given sequence KL lies on the straight line between the weights before and after the iteration of a
training run that first exceeded it; bisection finds it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.ppo.cases import Case, prompts_of, reward_of
from benchmarks.ppo.kleash_side import config_of
from benchmarks.ppo.models import new_policy
from benchmarks.ppo.rescoring import rescore
from rlhf_core.experience import TrainablePolicy
from rlhf_core.ppo import train
from rlhf_core.update import fresh_state

TARGETS = (0.1, 1.0, 5.0)  # nats per sequence
HALVINGS, CLOSE = 12, 0.01
RESAMPLES = 2000
Weights = dict[str, Tensor]


class VarianceRatio(NamedTuple):
    """At one sequence KL, with the bootstrap's 95 % interval."""

    kl: float  # of these very rollouts
    ratio: float
    low: float
    high: float
    sequences: int


def at_targets(
    case: Case, folder: str, *, seed: int, iterations: int, batches: int
) -> dict[float, VarianceRatio]:
    """What there is for each target that the run's KL exceeds within `iterations`."""
    policy = new_policy(case, folder, seed=seed)
    found: dict[float, VarianceRatio] = {}
    before = _copy(policy)
    for after in _trained(policy, case, folder, seed=seed, iterations=iterations):
        passed = rescore(policy, case, batches=4, seed=seed).kl.mean()
        for target in TARGETS:
            if target not in found and passed > target:
                found[target] = _between(policy, case, before, after, target, batches=batches, seed=seed)
        _set(policy, after)
        before = after
        if len(found) == len(TARGETS):
            break
    return found


def _trained(
    policy: TrainablePolicy, case: Case, folder: str, *, seed: int, iterations: int
) -> Iterator[Weights]:
    """The weights after each iteration."""
    config = config_of(case, folder, seed=seed, steps=iterations)
    state = fresh_state(policy, config)
    for _ in train(policy, state, config, prompts=prompts_of(case), eval_prompts=[], reward=reward_of(case)):
        yield _copy(policy)


def _between(
    policy: TrainablePolicy,
    case: Case,
    before: Weights,
    after: Weights,
    target: float,
    *,
    batches: int,
    seed: int,
) -> VarianceRatio:
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        _set(policy, {name: torch.lerp(before[name], after[name], share) for name in before})
        kl = rescore(policy, case, batches=4, seed=seed).kl.mean()
        if abs(kl / target - 1) <= CLOSE:
            break
        low, high = (share, high) if kl < target else (low, share)
    fresh = rescore(policy, case, batches=batches, seed=seed + 1)
    return bootstrapped(fresh.k1, fresh.kl, seed=seed)


def bootstrapped(k1: np.ndarray, kl: np.ndarray, *, seed: int) -> VarianceRatio:
    """Var Σk1 / Var ΣKL_t over the sequences, resampled together."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(k1), size=(RESAMPLES, len(k1)))
    ratios = k1[rows].var(axis=1, ddof=1) / kl[rows].var(axis=1, ddof=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    ratio = k1.var(ddof=1) / kl.var(ddof=1)
    return VarianceRatio(float(kl.mean()), float(ratio), float(low), float(high), len(k1))


def _copy(policy: TrainablePolicy) -> Weights:
    return {name: weight.detach().clone() for name, weight in policy.trainable_parameters().items()}


@torch.no_grad()
def _set(policy: TrainablePolicy, weights: Weights) -> None:
    for name, weight in policy.trainable_parameters().items():
        weight.copy_(weights[name])
