"""T31: the mean gradient of each KL setting on sequences of two tokens, through `make_targets` and `objective`.

Every sequence is enumerated and weighted by its probability, so there is no noise: 1e-9 is the oracles' digits.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core import objective as terms_of
from rlhf_core.chunked_logprobs import PolicyScores
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.experience import Experience
from rlhf_core.kl import divergences
from rlhf_core.logprobs import token_logprobs
from rlhf_core.objective import Tokens, objective
from rlhf_core.rollout import Rollout
from rlhf_core.targets import make_targets


def f64(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


P1, P2 = f64(0.7, 0.3), f64([0.9, 0.1], [0.2, 0.8])
Q1, Q2 = f64(0.5, 0.5), f64([0.6, 0.4], [0.5, 0.5])
FIRST, SECOND = (torch.tensor(x) for x in zip(*itertools.product((0, 1), repeat=2), strict=True))
NO_SCORE = torch.zeros(2, 2, dtype=torch.float64)
SCORE = f64([1, 0], [0, 0.5])
SEQUENCE_KL = f64(0.1849768756, 0.1128808466, -0.0665421293)  # its gradient: step 1; step 2 after 0; after 1
PER_TOKEN_KL = f64(0.1779325507, 0.1128808466, -0.0665421293)  # prefixes frozen
OF_PREFIXES = f64(0.0070443249, 0, 0)  # the difference

K1, HYBRID, EXACT = ({"penalty": penalty} for penalty in ("k1", "hybrid", "exact"))
K2, K3, RATIO_K1 = ({"penalty": "none", "loss": loss} for loss in ("k2", "k3", "ratio_k1"))


def scores_of(first: Tensor, second: Tensor) -> PolicyScores:
    """Of the tokens of 00, 01, 10, 11 under the policy of these logits ([2] and [prefix, 2])."""
    logprob = [token_logprobs(first.expand(4, 2), FIRST), token_logprobs(second[FIRST], SECOND)]
    kl = [divergences(first, Q1.log()).kl.expand(4), divergences(second, Q2.log()).kl[FIRST]]
    none = torch.zeros(4, 2, dtype=torch.float64)
    return PolicyScores(torch.stack(logprob, dim=1), none, torch.stack(kl, dim=1))


def config(**kl: str) -> PPOConfig:
    return PPOConfig.model_validate(
        {
            "model": {"name": "chain"},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},
            "kl": kl,
            "advantages": {"gae_lambda": 1.0, "whiten": False},
            "optimization": {"steps": 1},
        }
    )


def ppo_gradient(score: Tensor, beta: float, kl: dict[str, str], value: Tensor | None = None) -> Tensor:
    """Of the loss before the first step with respect to the logits of token 0 in the three states: −∇J."""
    first, second = P1.log().requires_grad_(), P2.log().requires_grad_()
    scores, options = scores_of(first, second), config(**kl)
    old = PolicyScores(*(x.detach() for x in scores))
    reference = scores_of(Q1.log(), Q2.log()).logprob
    values = torch.zeros_like(old.logprob) if value is None else value

    ids = torch.stack([torch.zeros(4, dtype=torch.long), FIRST, SECOND], dim=1)
    every = torch.ones(4, 2, dtype=torch.bool)
    rollout = Rollout(ids, torch.ones_like(ids), every, old.logprob, every[:, 0], prompt_width=1)
    experience = Experience(rollout, old.logprob, old.logprob - reference, old.kl, old.entropy, values)
    targets = make_targets(experience, score[FIRST, SECOND], beta, options)

    of_each = []
    for row in range(4):
        tokens = Tokens(
            old.logprob[row], reference[row], values[row], targets.advantage[row], targets.returns[row]
        )
        terms = objective(
            PolicyScores(*(x[row] for x in scores)),
            values[row],
            tokens,
            options,
            beta_in_loss=targets.beta_in_loss,
            token_count=1,  # Σ_t, not the mean
        ).terms
        of_each.append(torch.stack(list(terms.values())).sum())
    loss = old.logprob.sum(1).exp() @ torch.stack(of_each)
    of_first, of_second = torch.autograd.grad(loss, (first, second))
    # Two logits, one degree of freedom: the other one's gradient is the opposite.
    close(of_first.sum(), f64(0)[0], 1e-12)
    close(of_second.sum(1), f64(0, 0), 1e-12)
    return torch.cat([of_first[:1], of_second[:, 0]])


def true_gradient(score: Tensor, beta: float) -> Tensor:
    """The same of β KL − E[score], both summed over the four sequences: no estimator, no advantage."""
    first, second = P1.log().requires_grad_(), P2.log().requires_grad_()
    logp = scores_of(first, second).logprob.sum(1)
    ref = scores_of(Q1.log(), Q2.log()).logprob.sum(1)
    loss = logp.exp() @ (beta * (logp - ref) - score[FIRST, SECOND])
    of_first, of_second = torch.autograd.grad(loss, (first, second))
    return torch.cat([of_first[:1], of_second[:, 0]])


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kl", [K1, HYBRID, EXACT], ids=str)
def test_t31_a_penalty_descends_the_sequence_kl(kl: dict[str, str]) -> None:
    found = ppo_gradient(NO_SCORE, 1.0, kl)
    close(found, true_gradient(NO_SCORE, 1.0), 1e-12)
    close(found, SEQUENCE_KL)


@pytest.mark.parametrize("kl", [K1, HYBRID, EXACT], ids=str)
def test_t31_a_penalty_ascends_score_minus_beta_kl(kl: dict[str, str]) -> None:
    found = ppo_gradient(SCORE, 0.5, kl)
    close(found, true_gradient(SCORE, 0.5), 1e-12)
    close(-found, f64(0.0125115622, 0.0065595767, 0.0092710647))


@pytest.mark.parametrize("kl", [K1, HYBRID, EXACT], ids=str)
def test_t31_whatever_the_value_head_says_of_a_state(kl: dict[str, str]) -> None:
    """A baseline moves no mean gradient, as long as it is one number per state."""
    of_state = torch.stack([f64(0.3).expand(4), f64(-0.7, 0.2)[FIRST]], dim=1)
    close(ppo_gradient(SCORE, 0.5, kl, value=of_state), true_gradient(SCORE, 0.5), 1e-12)


@pytest.mark.parametrize("kl", [K2, K3, RATIO_K1], ids=str)
def test_t31_a_loss_alone_descends_the_kl_of_tokens(kl: dict[str, str]) -> None:
    close(ppo_gradient(NO_SCORE, 1.0, kl), PER_TOKEN_KL)


def test_t31_exact_kl_in_the_reward_alone_charges_prefixes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """KL_t does not depend on the token at t: it penalises none for itself."""
    monkeypatch.setattr(terms_of, "kl_loss", lambda *_, **__: None)  # the loss of `exact` is taken away
    close(ppo_gradient(NO_SCORE, 1.0, EXACT), OF_PREFIXES)
