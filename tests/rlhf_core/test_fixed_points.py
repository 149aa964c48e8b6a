"""The whole PPO loop on tabular policies whose optimum is known in closed form (oracles T13, T13b, T21).

maximise E[score] − β KL(π ‖ ref)   ⇒   π* ∝ ref · e^{score/β}

A loop with a wrong sign, position, mask, whitening or KL gradient lands elsewhere: see the negative controls.
"""

import math
import random

import pytest
import torch
from torch import Tensor

from examples.recipes.tabular import TabularPolicy, config, run, total_variation
from rlhf_core import objective, targets

pytestmark = pytest.mark.usefixtures("no_shape_checks")
K1, HYBRID, EXACT = ({"penalty": penalty} for penalty in ("k1", "hybrid", "exact"))
K2, K3, RATIO_K1 = ({"penalty": "none", "loss": loss} for loss in ("k2", "k3", "ratio_k1"))


def bound(kl: dict[str, str]) -> float:
    """Largest total variation; ratio·k1 has noise besides that of r·k3, up to .018 here."""
    return 0.03 if kl == RATIO_K1 else 0.02


REFERENCE, SCORES, BETA = [0.4, 0.4, 0.2], [1.0, 0.0, 0.5], 0.5
# q·e^{r/β} = (.4e², .4, .2e) = (2.955622, .4, .543656), Z = 3.899279
OPTIMUM = torch.tensor([0.75799208, 0.10258307, 0.13942485], dtype=torch.float64)


@pytest.mark.parametrize("kl", [K1, HYBRID, EXACT, K2, K3, RATIO_K1], ids=str)
def test_t13_the_loop_lands_on_the_closed_form_optimum(kl: dict[str, str]) -> None:
    policy = TabularPolicy([REFERENCE])
    run(policy, config(kl, beta=BETA, tokens=1), lambda ids: SCORES[ids[0]])
    assert total_variation(policy.probabilities(), OPTIMUM) < bound(kl)


def test_t13_holds_for_a_random_reference_and_scores() -> None:
    """Drawn by the seed that pytest-randomly prints. Fewer than 200 iterations do not reach a far optimum."""
    kl, beta = random.choice([K1, EXACT, K3]), random.choice([0.1, 0.2, 0.5, 1.0, 2.0])
    vocab = random.randint(3, 8)
    weights, scores = ([random.uniform(0.05, 1.0) for _ in range(vocab)] for _ in range(2))
    reference = [w / sum(weights) for w in weights]
    optimum = torch.tensor([q * math.exp(r / beta) for q, r in zip(reference, scores, strict=True)])
    policy = TabularPolicy([reference])
    run(policy, config(kl, beta=beta, tokens=1, steps=200), lambda ids: scores[ids[0]])
    assert total_variation(policy.probabilities(), optimum / optimum.sum()) < 0.02, (
        kl,
        beta,
        weights,
        scores,
    )


def test_t13_negative_control_exact_kl_in_the_reward_alone_runs_to_the_argmax(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The exact KL of a position does not depend on its own token, so as a reward it holds nothing back."""
    monkeypatch.setattr(objective, "kl_loss", lambda *_, **__: None)  # its loss is taken away
    policy = TabularPolicy([REFERENCE])
    run(policy, config(EXACT, beta=BETA, tokens=1), lambda ids: SCORES[ids[0]])
    assert policy.probabilities()[0] > 0.95


@pytest.mark.parametrize("kl", [EXACT, K2], ids=str)
def test_t13_negative_control_whitening_needs_beta_over_sigma_in_the_loss(
    monkeypatch: pytest.MonkeyPatch, kl: dict[str, str]
) -> None:
    """Whitening divides the score's advantages by σ_A; a loss with β instead of β/σ_A holds too loosely."""
    monkeypatch.setattr(targets, "beta_in_loss", lambda beta, sigma: beta)
    policy = TabularPolicy([REFERENCE])
    run(policy, config(kl, beta=BETA, tokens=1), lambda ids: SCORES[ids[0]])
    assert total_variation(policy.probabilities(), OPTIMUM) > 0.05


# Two tokens: ref of numerics.md T5, score [[1, 0], [.7, .7]] by (first, second) token, β = .25.
CHAIN = [[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]]  # after nothing, after 0, after 1
CHAIN_SCORES = [[1.0, 0.0], [0.7, 0.7]]
CHAIN_OPTIMUM = torch.tensor([0.66041440, 0.00806394, 0.16576083, 0.16576083])
PER_TOKEN_OPTIMUM = torch.tensor([0.75066403, 0.00916593, 0.12008502, 0.12008502])


def chain_distribution(policy: TabularPolicy) -> Tensor:
    first = policy.probabilities(0)
    return torch.cat([first[0] * policy.probabilities(1), first[1] * policy.probabilities(2)])


def chain_score(ids: list[int]) -> float:
    return CHAIN_SCORES[ids[0]][ids[1]]


@pytest.mark.parametrize("kl", [K1, HYBRID, EXACT], ids=str)
def test_t13b_a_penalty_pays_for_the_kl_of_later_tokens(kl: dict[str, str]) -> None:
    policy = TabularPolicy(CHAIN)
    steps = run(policy, config(kl, beta=0.25, tokens=2), chain_score)
    assert total_variation(chain_distribution(policy), CHAIN_OPTIMUM) < 0.02
    # The exact sequence KL that is reported is that of the process: .3590032887 at the optimum.
    assert steps[-1].metrics["kl/sequence"] == pytest.approx(0.3590, abs=0.05)


@pytest.mark.parametrize("kl", [K2, K3, RATIO_K1], ids=str)
def test_t13b_a_kl_loss_freezes_the_prefixes_and_lands_elsewhere(kl: dict[str, str]) -> None:
    """numerics.md §4: `kl.loss` optimises Σ KL_t with prefixes frozen, another optimum than sequence KL's."""
    policy = TabularPolicy(CHAIN)
    run(policy, config(kl, beta=0.25, tokens=2), chain_score)
    reached = chain_distribution(policy)
    assert total_variation(reached, PER_TOKEN_OPTIMUM) < bound(kl)
    assert total_variation(reached, CHAIN_OPTIMUM) > 0.05


def test_t13b_negative_control_without_the_kl_of_later_tokens_in_the_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`exact` without its reward is a per-token loss, and lands where those land."""
    monkeypatch.setattr(targets, "_charge", lambda experience, _: torch.zeros_like(experience.kl))
    policy = TabularPolicy(CHAIN)
    run(policy, config(EXACT, beta=0.25, tokens=2), chain_score)
    assert total_variation(chain_distribution(policy), PER_TOKEN_OPTIMUM) < 0.02


@pytest.mark.parametrize("kl", [K1, HYBRID, EXACT, K2, K3, RATIO_K1], ids=str)
def test_t21_the_first_minibatch_is_exactly_on_policy(kl: dict[str, str]) -> None:
    """Ratio 1 to the bit: nothing clipped, approx_kl 0, and the policy loss is −mean(A) = 0 when whitened."""
    policy = TabularPolicy(CHAIN)
    options = config(kl, beta=0.25, tokens=2, steps=1, batch=64)
    options = options.model_copy(
        update={"optimization": options.optimization.model_copy(update={"epochs": 1, "minibatches": 1})}
    )
    (step,) = run(policy, options, chain_score)
    assert step.metrics["policy/ratio_max"] == 1.0
    assert step.metrics["policy/approx_kl"] == 0.0
    assert step.metrics["policy/clip_fraction"] == 0.0
    assert step.metrics["loss/policy"] == pytest.approx(0.0, abs=1e-12)
    assert step.metrics["kl/sequence"] == 0.0  # the policy still is its reference
    assert step.metrics.get("loss/kl", 0.0) == 0.0
    assert step.metrics["policy/generation_mismatch"] < 1e-12


def test_a_reported_penalty_is_what_was_subtracted() -> None:
    policy = TabularPolicy(CHAIN)
    steps = run(policy, config(K1, beta=0.25, tokens=2, steps=5, batch=64), chain_score)
    for step in steps:
        m = step.metrics
        assert m["reward/adjusted_mean"] == pytest.approx(m["reward/mean"] - m["kl/penalty"], abs=1e-12)
        assert m["kl/penalty"] == pytest.approx(m["kl/beta"] * m["kl/k1_sequence"], abs=1e-12)
