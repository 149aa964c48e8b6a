"""What each way of charging KL does to the policy: gradients by autograd against closed forms and enumeration."""

import math

import pytest
import torch

from rlhf_core.kl import divergences, k1, k2, k3
from rlhf_core.logprobs import token_logprobs
from rlhf_core.losses import k2_loss, k3_loss, ratio_k1_loss


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


@pytest.mark.parametrize("loss", [k2_loss, k3_loss, ratio_k1_loss])
def test_a_kl_loss_has_the_mean_gradient_of_kl_also_off_policy(loss):
    old = f64(0.2, 0.2, 0.6)  # samples come from here; r = π/old restores the mean under π
    logits, logp = policy()
    per_token = [
        loss(logp[v : v + 1], old.log()[v : v + 1], Q.log()[v : v + 1], token_count=1) for v in range(3)
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
