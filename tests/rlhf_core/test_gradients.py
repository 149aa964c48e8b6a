"""What each way of charging KL does to the policy: gradients by autograd against closed forms and enumeration."""

import itertools
import math

import pytest
import torch

from rlhf_core.advantages import gae, token_rewards
from rlhf_core.kl import divergences, k1, k2, k3
from rlhf_core.logprobs import token_logprobs
from rlhf_core.losses import k2_loss, policy_loss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# --- T3: one softmax ---

P, Q = f64(0.5, 0.3, 0.2), f64(0.4, 0.4, 0.2)
D = (P / Q).log()
GRAD_KL = P * (D - P @ D)  # ∂KL/∂logit_v = p_v (d_v − KL)


def policy() -> tuple[torch.Tensor, torch.Tensor]:
    logits = P.log().requires_grad_()
    return logits, token_logprobs(logits.expand(3, 3), torch.arange(3))


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def test_t3_gradient_of_exact_kl():
    logits, _ = policy()
    found = divergences(logits, Q.log())
    close(GRAD_KL, f64(0.0989382, -0.0938848, -0.0050534), 5e-8)
    close(gradient(found.kl, logits), GRAD_KL)
    # ∂KL(ref ‖ π)/∂a = p − q;  ∂H/∂a_v = −p_v (ln p_v + H)
    logits, _ = policy()
    close(gradient(divergences(logits, Q.log()).kl_ref, logits), P - Q)
    logits, _ = policy()
    entropy = -(P @ P.log())
    close(gradient(divergences(logits, Q.log()).entropy, logits), -P * (P.log() + entropy))


def test_t3_mean_gradients_of_the_estimators():
    ref = Q.log()
    expected = {
        "k1 as reward": (lambda logp: k1(logp, ref).detach() * logp, GRAD_KL),
        "k2 in the loss": (lambda logp: k2(logp, ref), GRAD_KL),
        "r k3 in the loss": (lambda logp: (logp - logp.detach()).exp() * k3(logp, ref), GRAD_KL),
        "k1 in the loss": (lambda logp: k1(logp, ref), f64(0, 0, 0)),  # E[∇ log π] = 0
        "k3 in the loss": (lambda logp: k3(logp, ref), P - Q),  # that of KL(ref ‖ π)
        "k3 as reward": (lambda logp: k3(logp, ref).detach() * logp, GRAD_KL - (P - Q)),
    }
    for name, (of_logp, closed_form) in expected.items():
        logits, logp = policy()
        found = gradient(P @ of_logp(logp), logits)
        torch.testing.assert_close(found, closed_form, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_t3_pointwise_k2_and_r_k3_have_the_gradient_d():
    logp = P.log().requires_grad_()
    close(gradient(k2(logp, Q.log()).sum(), logp), D)
    close(gradient(((logp - logp.detach()).exp() * k3(logp, Q.log())).sum(), logp), D)


def test_k2_loss_has_the_mean_gradient_of_kl_also_off_policy():
    old = f64(0.2, 0.2, 0.6)  # samples come from here; r = π/old restores the mean under π
    logits, logp = policy()
    per_token = [
        k2_loss(logp[v : v + 1], old.log()[v : v + 1], Q.log()[v : v + 1], token_count=1) for v in range(3)
    ]
    close(gradient(old @ torch.stack(per_token), logits), GRAD_KL)


@pytest.mark.parametrize("excluded", ["policy", "reference", "both"])
def test_gradients_survive_excluded_items(excluded):
    """−∞ logits give no NaN: where KL is finite its gradient is that of the smaller vocabulary."""
    minus = f64(-math.inf)
    logits = torch.cat([P.log(), minus if excluded != "reference" else f64(-800)]).requires_grad_()
    reference = torch.cat([Q.log(), minus if excluded != "policy" else f64(-800)])
    kl = divergences(logits, reference).kl
    assert kl.isfinite()
    close(gradient(kl, logits), torch.cat([GRAD_KL, f64(0)]))


# --- T31: sequences of two tokens, through the functions that the trainer calls ---

P1, P2 = f64(0.7, 0.3), torch.stack([f64(0.9, 0.1), f64(0.2, 0.8)])
Q1, Q2 = f64(0.5, 0.5), torch.stack([f64(0.6, 0.4), f64(0.5, 0.5)])
FIRST, SECOND = (torch.tensor(x) for x in zip(*itertools.product((0, 1), repeat=2), strict=True))
NO_SCORE = torch.zeros(2, 2, dtype=torch.float64)


def chain(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the tokens of 00, 01, 10, 11 given logits [2] and [prefix, 2]."""
    steps = [token_logprobs(first.expand(4, 2), FIRST), token_logprobs(second[FIRST], SECOND)]
    return torch.stack(steps, dim=1)


def ppo_gradient(score: torch.Tensor, beta: float, *, penalty: str) -> torch.Tensor:
    """Expected gradient of PPO's loss before the first step, w.r.t. the logits of token 0 in the three states.

    λ = 1 and values of 0; every sequence is weighted by its probability. −∇J for J = E[score] − β KL.
    """
    first, second = P1.log().requires_grad_(), P2.log().requires_grad_()
    logp = chain(first, second)
    ref = chain(Q1.log(), Q2.log())
    step1 = divergences(P1.log(), Q1.log()).kl
    exact = torch.stack([step1.expand(4), divergences(P2.log(), Q2.log()).kl[FIRST]], dim=1)
    charged = {"k1": k1(logp.detach(), ref), "exact": exact}[penalty]

    mask = torch.ones(4, 2, dtype=torch.bool)
    rewards = token_rewards(score[FIRST, SECOND], charged, mask, beta=beta)
    advantages = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0).advantages
    losses = [
        policy_loss(logp[i], logp[i].detach(), advantages[i], clip_range=0.2, token_count=1).loss
        for i in range(4)
    ]
    loss = logp.detach().sum(1).exp() @ torch.stack(losses)
    of_first, of_second = torch.autograd.grad(loss, (first, second))
    # Two logits, one degree of freedom: the other one's gradient is the opposite.
    close(of_first.sum(), f64(0)[0])
    close(of_second.sum(1), f64(0, 0))
    return torch.cat([of_first[:1], of_second[:, 0]])


def true_gradient(score: torch.Tensor, beta: float) -> torch.Tensor:
    """The same of β KL − E[score], both summed over the four sequences: no estimator, no advantage."""
    first, second = P1.log().requires_grad_(), P2.log().requires_grad_()
    logp = chain(first, second).sum(1)
    ref = chain(Q1.log(), Q2.log()).sum(1)
    loss = logp.exp() @ (beta * (logp - ref) - score[FIRST, SECOND])
    of_first, of_second = torch.autograd.grad(loss, (first, second))
    return torch.cat([of_first[:1], of_second[:, 0]])


def test_t31_k1_in_the_reward_descends_the_sequence_kl():
    found = ppo_gradient(NO_SCORE, 1.0, penalty="k1")
    close(found, true_gradient(NO_SCORE, 1.0), 1e-12)
    close(found, f64(0.1849768756, 0.1128808466, -0.0665421293), 1e-9)


def test_t31_k1_in_the_reward_ascends_score_minus_beta_kl():
    score = torch.stack([f64(1, 0), f64(0, 0.5)])
    found = ppo_gradient(score, 0.5, penalty="k1")
    close(found, true_gradient(score, 0.5), 1e-12)
    close(-found, f64(0.0125115622, 0.0065595767, 0.0092710647), 1e-9)


def test_t31_exact_kl_in_the_reward_alone_is_wrong():
    """KL_t does not depend on the token at t: it penalises none for itself, only prefixes."""
    found = ppo_gradient(NO_SCORE, 1.0, penalty="exact")
    close(found, f64(0.0070443249, 0, 0), 1e-9)
