"""Gradient noise of the KL penalties `k1`, `hybrid` and `exact`: fixed weights, many batches, the trainer's path.

λ = 1 and no whitening, so that the three have one mean, the gradient of E[reward − β·ΣKL_t]. V is a mean by
position, fitted on other batches. The reward adds up over tokens, so π* ∝ ref·exp(reward/β) is known by token,
and a policy is fitted to it: no run has to find it.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.ppo.cases import EVERY, WORDS, Case, prompts_of, reward_of
from benchmarks.ppo.kleash_side import config_of
from benchmarks.ppo.models import new_policy
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience, TrainablePolicy, assess, response_hidden, sample
from rlhf_core.rollout import response_ids
from rlhf_core.targets import make_targets
from rlhf_core.update import TrainState, add_gradient, fresh_state

PENALTIES = ("k1", "hybrid", "exact")
# Which words a policy prefers, by their number's remainder, as a share of π*'s preference for multiples of EVERY.
POLICIES = {"halfway": (0, 0.5), "optimum": (0, 1.0), "unrelated": (1, 1.0)}
FITS, FIT_RATE, FITTING = 150, 1e-3, 8  # optimizer steps, learning rate, batches that V is fitted on
COORDINATES = 65_536  # of a gradient, evenly spread
RESAMPLES = 2000


class Noise(NamedTuple):
    """Trace of the covariance of a batch's gradient over that of k1, with the bootstrap's 95 % interval."""

    over_k1: float
    low: float
    high: float


class AtPolicy(NamedTuple):
    """At one policy: the noise by penalty, of the whole policy gradient and of the KL term's alone."""

    kl: float  # nats per sequence
    whole: dict[str, Noise]
    kl_term: dict[str, Noise]


def at_policies(case: Case, folder: str, *, seed: int, batches: int) -> dict[str, AtPolicy]:
    """For each of POLICIES."""
    found = {}
    for name, (remainder, share) in POLICIES.items():
        policy = new_policy(case, folder, seed=seed)
        preference = torch.zeros(WORDS)
        preference[remainder::EVERY] = share / (case.tokens * case.beta)
        fit(policy, case, folder, preference, seed=seed)
        found[name] = _noise(policy, case, folder, batches=batches, seed=seed + 1)
    return found


def fit(policy: TrainablePolicy, case: Case, folder: str, preference: Tensor, *, seed: int) -> None:
    """Move the policy to ref·exp(preference), normalised, by exact KL to it on prefixes of its own."""
    config = config_of(case, folder, seed=seed, steps=1)
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.trainable_parameters().values(), lr=FIT_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FITS)
    for _ in range(FITS):
        rollout = sample(policy, prompts_of(case), config.rollout, random)
        with torch.no_grad(), policy.reference() as model:
            wanted = (model.logits(response_hidden(model, rollout)) + preference).log_softmax(-1)
        with policy.policy() as model:
            ours = model.logits(response_hidden(model, rollout)).log_softmax(-1)
        optimizer.zero_grad()
        (ours.exp() * (ours - wanted)).sum(-1).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _noise(policy: TrainablePolicy, case: Case, folder: str, *, batches: int, seed: int) -> AtPolicy:
    found = gradients_of(policy, case, folder, batches=batches, seed=seed)
    whole = {name: found.of_score + one for name, one in found.of_kl.items()}
    return AtPolicy(found.kl, _by_penalty(whole, seed=seed), _by_penalty(found.of_kl, seed=seed))


class Gradients(NamedTuple):
    """A row per batch, of loss: the score's part and, by penalty, the KL term's."""

    kl: float  # nats per sequence
    of_score: Tensor
    of_kl: dict[str, Tensor]


def gradients_of(policy: TrainablePolicy, case: Case, folder: str, *, batches: int, seed: int) -> Gradients:
    """Of `batches` fresh batches, at the policy's weights as they are."""
    random = torch.Generator().manual_seed(seed)
    config = config_of(case, folder, seed=seed, steps=1)
    state = fresh_state(policy, config)
    terms = {"score": _config(config, "k1", beta=0.0)} | {
        name: _config(config, name, beta=case.beta) for name in PENALTIES
    }
    rolled = [_experience(policy, case, config, state, random) for _ in range(FITTING + batches)]
    gradients: dict[str, list[Tensor]] = {name: [] for name in terms}
    for name, options in terms.items():
        baseline = torch.stack([_returns(one, name, options) for one in rolled[:FITTING]]).mean(dim=(0, 1))
        for one in rolled[FITTING:]:
            gradients[name].append(_gradient(policy, state, one, name, options, baseline))
    found = {name: torch.stack(rows).double() for name, rows in gradients.items()}
    kl = float(torch.stack([one.kl.sum(dim=1).mean() for one, _ in rolled]).mean())
    return Gradients(kl, found.pop("score"), found)


def _config(config: PPOConfig, penalty: str, *, beta: float) -> PPOConfig:
    document = config.model_dump()
    document["kl"] |= {"penalty": penalty, "beta": beta}
    document["advantages"] |= {"gae_lambda": 1.0, "whiten": False}
    return PPOConfig.model_validate(document)


Scored = tuple[Experience, Tensor]


def _experience(
    policy: TrainablePolicy, case: Case, config: PPOConfig, state: TrainState, random: torch.Generator
) -> Scored:
    rollout = sample(policy, prompts_of(case), config.rollout, random)
    rows = torch.arange(case.batch)
    found = assess(policy, state.value_head, rollout, [rows], 1.0, keep_reference=True)
    completions = [policy.codec.decode(ids) for ids in response_ids(rollout)]
    scores = reward_of(case)(prompts_of(case), completions, rollout.response_mask.sum(dim=1).tolist())
    return found, torch.tensor(scores)


def _scores(scored: Scored, term: str) -> Tensor:
    return scored[1] if term == "score" else torch.zeros_like(scored[1])


def _returns(scored: Scored, term: str, config: PPOConfig) -> Tensor:
    """What V predicts; the head is 0."""
    return make_targets(scored[0], _scores(scored, term), config.kl.beta, config).returns


def _gradient(
    policy: TrainablePolicy, state: TrainState, scored: Scored, term: str, config: PPOConfig, baseline: Tensor
) -> Tensor:
    experience = scored[0]._replace(value=baseline.expand_as(scored[0].value))
    targets = make_targets(experience, _scores(scored, term), config.kl.beta, config)
    if term != "exact":
        experience = experience._replace(reference_hidden=None)
    state.optimizer.zero_grad(set_to_none=True)
    mask = experience.rollout.response_mask
    count = int(mask.sum())
    add_gradient(policy, state, experience, targets, torch.arange(len(mask)), config, token_count=count)
    weights = list(policy.trainable_parameters().values())
    stride = -(-sum(weight.numel() for weight in weights) // COORDINATES)
    return torch.cat([weight.grad.reshape(-1)[::stride] for weight in weights if weight.grad is not None])


def _by_penalty(gradients: dict[str, Tensor], *, seed: int) -> dict[str, Noise]:
    return {name: noise(one, gradients["k1"], seed=seed) for name, one in gradients.items()}


def noise(gradients: Tensor, of_k1: Tensor, *, seed: int) -> Noise:
    """Ratio of the two traces over the same batches, resampled together."""
    rng = np.random.default_rng(seed)
    count = len(gradients)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count
    ratios = _trace(gradients, drawn) / _trace(of_k1, drawn)
    once = np.full((1, count), 1 / count)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Noise(float((_trace(gradients, once) / _trace(of_k1, once))[0]), float(low), float(high))


def _trace(gradients: Tensor, weights: np.ndarray) -> np.ndarray:
    """Σ w|g − ḡ|² for each row of weights that sum to 1, by the products of all pairs."""
    centred = gradients - gradients.mean(dim=0)
    pairs = (centred @ centred.T).numpy()
    found: np.ndarray = weights @ pairs.diagonal() - np.einsum("ri,ij,rj->r", weights, pairs, weights)
    return found
