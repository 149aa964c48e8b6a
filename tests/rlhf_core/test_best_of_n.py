"""Best-of-n against every set of k completions, T23 by enumeration, and through a real run."""

import math
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_core import ppo
from rlhf_core.best_of_n import best_of_n, best_of_n_kl, chance_to_be_best
from rlhf_core.checkpoint import read_checkpoint, write_checkpoint
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.order import generator
from rlhf_core.policies import Policy, new_policy
from rlhf_core.rollout import generate, response_ids
from rlhf_core.update import TrainState, fresh_state

pytestmark = pytest.mark.usefixtures("no_shape_checks")
PROMPTS = ("The cat", "A lovely")
Scores = list[list[int]]


def over_all_sets(scores: Scores, gold: Scores, k: int) -> tuple[list[Fraction], list[Fraction]]:
    """Of each prompt, means over all sets of k: the highest score, and the gold of those that have it."""
    best, gold_of_best = [], []
    for row, other in zip(scores, gold, strict=True):
        sets = list(combinations(range(len(row)), k))
        tops = [[i for i in chosen if row[i] == max(row[j] for j in chosen)] for chosen in sets]
        best.append(Fraction(sum(row[top[0]] for top in tops), len(sets)))
        gold_of_best.append(sum(Fraction(sum(other[i] for i in top), len(top)) for top in tops) / len(sets))
    return best, gold_of_best


@pytest.mark.parametrize(
    "scores",
    [
        [[3, -1, 7, 0, 2, 5], [1, 2, 4, 8, 16, 32]],
        [[2, 2, 0, 1, 1, 1], [5, 5, 5, 5, 5, 5]],  # ties, of the best and of others
    ],
    ids=["all differ", "ties"],
)
def test_the_estimate_is_the_mean_over_all_sets_of_k(scores: Scores) -> None:
    gold = [[1, 9, 4, -3, 6, 2], [0, 3, 1, 7, 8, 5]]
    found = best_of_n(np.array(scores, float), np.array(gold, float), PROMPTS)
    assert [point.n for point in found] == [1, 2, 4, 6]
    for point in found:
        for values, mean, se in zip(
            over_all_sets(scores, gold, point.n),
            (point.reward, point.gold),
            (point.reward_se, point.gold_se),
            strict=True,
        ):
            first, second = values
            assert mean == pytest.approx(float(first + second) / 2, rel=1e-14)
            assert se == pytest.approx(abs(float(first - second)) / 2, rel=1e-12, abs=1e-15)  # sd/√2 of two


def test_completions_of_equal_prompts_are_one_cluster() -> None:
    """Rows of 1, 3 and 8, the first two of one prompt: the mean is 4."""
    (one, _) = best_of_n(np.array([[1.0, 1], [3, 3], [8, 8]]), None, ("a", "a", "b"))
    assert (one.reward, one.gold, one.gold_se) == (4.0, None, None)
    # deviations of the clusters' sums from 4 per row: 4 − 8 and 8 − 4; SE² = 2/1 · (16 + 16) / 3²
    assert one.reward_se == pytest.approx(8 / 3)
    assert best_of_n(np.array([[1.0, 2]]), None, ("a",))[1].reward_se is None


def test_estimates_are_unbiased_for_fresh_completions() -> None:
    """Of uniform scores the highest of k is k/(k + 1) on average."""
    scores = np.random.default_rng(0).random((4000, 8))
    for point in best_of_n(scores, -scores, [str(row) for row in range(4000)]):
        assert point.reward_se is not None
        assert point.reward == pytest.approx(point.n / (point.n + 1), abs=4 * point.reward_se)
        assert point.gold == pytest.approx(-point.reward)


def test_t23_best_of_n_is_bounded_by_its_kl() -> None:
    """The best of 2 of 4 equally likely ranks: (i/4)² − ((i−1)/4)²; with ties it is nearer to the reference."""
    best = [late**2 - early**2 for early, late in pairwise([0, 0.25, 0.5, 0.75, 1])]
    assert best == [0.0625, 0.1875, 0.3125, 0.4375]
    exact = math.fsum(p * math.log(p / 0.25) for p in best)
    assert exact == pytest.approx(0.1739804809, abs=5e-11)
    assert exact <= best_of_n_kl(2) == pytest.approx(0.1931471806, abs=5e-11)
    # The same reward for ranks 1 and 2: (¼)/2 each of them, and the rest as before.
    tied = math.fsum(p * math.log(p / 0.25) for p in (0.125, 0.125, 0.3125, 0.4375))
    assert tied < exact


def test_t23_the_chances_of_ranks() -> None:
    """Drawn with replacement the best of 2 has T23's; without, of 4 completions, C(i−1, 1)/C(4, 2)."""
    assert chance_to_be_best(4, 2).tolist() == [0, 1 / 6, 2 / 6, 3 / 6]
    for n, k in ((64, 1), (64, 32), (64, 64)):
        assert math.fsum(chance_to_be_best(n, k)) == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("n", [2, 4, 16])
def test_without_ties_the_kl_of_best_of_n_is_the_formula(n: int) -> None:
    """The best of n uniform scores has density n·u^{n−1}: KL = ∫ n u^{n−1} ln(n u^{n−1}) du, by midpoints."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_kl(n) == pytest.approx(float(np.mean(density * np.log(density))), abs=1e-6)
    assert best_of_n_kl(1) == 0


# --- in a run ---


def config(**evaluation: Any) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "tiny", "lora": {"rank": 2}},
            "data": {"prompts": PROMPTS, "eval_prompts": PROMPTS},
            "reward": {"kind": "length", "target_tokens": 4},
            "rollout": {"batch_size": 4, "max_new_tokens": 6},
            "optimization": {"steps": 2, "minibatches": 2, "learning_rate": 0.01},
            "evaluation": evaluation,
        }
    )


class Asked:
    """A reward that spreads, and notes whom it was asked about; its opposite is the gold reward."""

    def __init__(self) -> None:
        self.completions: list[list[str]] = []

    def __call__(self, prompts: Any, completions: Any, tokens: Any) -> list[float]:
        self.completions.append(list(completions))
        return [float(sum(map(ord, text)) % 97) for text in completions]

    def gold(self, prompts: Any, completions: Any, tokens: Any) -> list[float]:
        return [-float(sum(map(ord, text)) % 97) for text in completions]


def run(policy: Policy, state: TrainState, options: PPOConfig, *, until: int = 2) -> Asked:
    asked = Asked()
    steps = ppo.train(
        policy, state, options, prompts=PROMPTS, eval_prompts=PROMPTS, reward=asked, gold=asked.gold
    )
    for step in steps:
        if step.step == until:
            break
    return asked


def started(model: Path, options: PPOConfig) -> tuple[Policy, TrainState]:
    policy = new_policy(str(model), options.model, seed=0)
    return policy, fresh_state(policy, options)


def weights(policy: Policy) -> dict[str, bytes]:
    return {name: p.detach().numpy().tobytes() for name, p in policy.trainable_parameters().items()}


def scored(completions: list[str]) -> np.ndarray:
    return np.array(Asked()([], completions, [])).reshape(len(PROMPTS), -1)


def test_a_run_asks_its_reference_before_training(tiny_model: Path) -> None:
    """Six completions of each prompt, four at a time as in a rollout: those of the reference, generated here."""
    options = config(best_of_n=6)
    policy, state = started(tiny_model, options)
    asked = run(policy, state, options)
    assert list(map(len, asked.completions)) == [2, 12, 4, 4, 2]  # held out, best of n, steps, held out
    texts = [PROMPTS[row // 6] for row in range(12)]
    expected: list[str] = []
    for start in (0, 4, 8):
        with policy.reference() as model:
            rollout = generate(
                model,
                [policy.codec.encode(text) for text in texts[start : start + 4]],
                max_new_tokens=6,
                temperature=1.0,
                eos_ids=policy.codec.eos_ids,
                pad_id=policy.codec.pad_id,
                generator=generator("best_of_n", step=start, seed=0, device=torch.device("cpu")),
            )
        expected += [policy.codec.decode(ids) for ids in response_ids(rollout)]
    assert asked.completions[1] == expected
    assert len(set(expected)) == 12
    scores = scored(expected)
    assert state.best_of_n == best_of_n(scores, -scores, PROMPTS)
    assert state.best_of_n[-1].reward == scores.max(axis=1).mean()


def test_without_it_a_run_is_the_same_and_asks_nobody(tiny_model: Path) -> None:
    """Its random numbers are its own: weights are equal to the bit."""
    found = []
    for options in (config(), config(best_of_n=6)):
        policy, state = started(tiny_model, options)
        asked = run(policy, state, options)
        found.append((asked.completions, weights(policy)))
    (without, plain), (with_it, same) = found
    assert without == [with_it[0], *with_it[2:]]
    assert plain == same


def test_a_resumed_run_keeps_it_and_does_not_sample_again(tiny_model: Path, tmp_path: Path) -> None:
    options = config(best_of_n=6)
    policy, state = started(tiny_model, options)
    run(policy, state, options, until=1)
    write_checkpoint(tmp_path, policy, state)
    run(policy, state, options)
    policy_again, again = read_checkpoint(tmp_path, options, source=str(tiny_model))
    asked = run(policy_again, again, options)
    assert list(map(len, asked.completions)) == [4, 2]
    assert again.best_of_n == state.best_of_n != ()
    assert weights(policy_again) == weights(policy)


def test_what_a_trained_policy_lacks_of_its_baseline_is_that_of_its_reference(tiny_model: Path) -> None:
    """As it does that goes on from a job with other rewards: the numbers are those of a run from the start."""
    options = config(best_of_n=6)
    policy, state = started(tiny_model, options)
    run(policy, state, options, until=1)
    before, best = state.baseline, state.best_of_n
    state.baseline, state.latest, state.best_of_n = None, None, ()
    asked = run(policy, state, options)
    assert list(map(len, asked.completions)) == [2, 12, 4, 2]
    assert (state.baseline, state.best_of_n) == (before, best)
    assert state.latest != state.baseline
