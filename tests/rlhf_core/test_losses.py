import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.losses import beta_in_loss, k2_loss, policy_loss, value_loss


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clipped_policy_loss():
    # −A r = (−.5, 1, −3); −A clip(r, .8, 1.2) = (−.8, 1, −2.4); the larger: (−.5, 1, −2.4), clipped at the last.
    logp = f64(0.5, 1, 1.5).log().requires_grad_()
    result = policy_loss(logp, torch.zeros_like(logp), f64(1, -1, 2), clip_range=0.2, token_count=3)
    assert result.loss.item() == pytest.approx((-0.5 + 1 - 2.4) / 3, abs=1e-12)
    assert result.clip_fraction.item() == pytest.approx(1 / 3, abs=1e-12)
    # r − 1 − ln r: (.19314718, 0, .09453489)
    drift = (-0.5 + math.log(2)) + (0.5 - math.log(1.5))
    assert result.approx_kl.item() == pytest.approx(drift / 3, abs=1e-12)
    assert result.ratio_max.item() == pytest.approx(1.5, abs=1e-12)
    result.loss.backward()
    # d(−A r)/d logp = −A r where not clipped, 0 where clipped
    torch.testing.assert_close(logp.grad, f64(-0.5, 1, 0) / 3, rtol=0, atol=1e-12)


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    # −A r = (−.5, 1, 40), clipped (−.8, 1, 4.8): the larger is (−.5, 1, 40).
    # A < 0 at the last two: at most −A c = (3, 12).
    logp = f64(0.5, 1, 10).log().requires_grad_()
    result = policy_loss(
        logp, torch.zeros_like(logp), f64(1, -1, -4), clip_range=0.2, token_count=3, dual_clip=3.0
    )
    assert result.loss.item() == pytest.approx((-0.5 + 1 + 12) / 3, abs=1e-12)
    result.loss.backward()
    torch.testing.assert_close(logp.grad, f64(-0.5, 1, 0) / 3, rtol=0, atol=1e-12)
    # Below 1 − ε the ordinary clip still holds: max(.5, .8) = .8.
    low = policy_loss(f64(0.5).log(), f64(0), f64(-1), clip_range=0.2, token_count=1, dual_clip=3.0)
    assert low.loss.item() == pytest.approx(0.8, abs=1e-12)


def test_value_loss():
    # V = (2, 0, 1.1), clipped to 1 ± .2: (1.2, .8, 1.1); R = 0: ½max = (½·4, ½·.64, ½·1.21) = (2, .32, .605)
    values = f64(2, 0, 1.1).requires_grad_()
    result = value_loss(values, f64(1, 1, 1), f64(0, 0, 0), clip_range=0.2, token_count=3)
    assert result.loss.item() == pytest.approx(2.925 / 3, abs=1e-12)
    assert result.clip_fraction.item() == pytest.approx(1 / 3, abs=1e-12)
    result.loss.backward()
    torch.testing.assert_close(values.grad, f64(2, 0, 1.1) / 3, rtol=0, atol=1e-12)


def test_on_policy_the_ratio_is_one_and_the_gradient_reinforces():
    """T21: before the first step loss = −mean A, nothing is clipped, and ∂/∂logp = −A/N."""
    logp = f64(-1, -2, -3).requires_grad_()
    advantages = f64(0.5, -1, 2)
    result = policy_loss(logp, logp.detach(), advantages, clip_range=0.2, token_count=3)
    assert result.loss.item() == -advantages.mean().item()
    assert (result.clip_fraction.item(), result.approx_kl.item(), result.ratio_max.item()) == (0, 0, 1)
    result.loss.backward()
    torch.testing.assert_close(logp.grad, -advantages / 3, rtol=0, atol=1e-15)


def test_masked_tokens_reach_neither_loss_nor_gradient():
    """T19: losses see `x[mask]`; garbage elsewhere has the gradient 0, not NaN."""
    mask = torch.tensor([[True, False, True], [True, True, False]])
    clean = torch.tensor([[-1.0, 0, -2], [-0.5, -1, 0]], dtype=torch.float64)
    results = []
    for garbage in (0.0, -1e10, math.inf, -math.inf, math.nan):
        x = torch.where(mask, clean, garbage).requires_grad_()
        old, reference, advantages = (torch.where(mask, clean * s, garbage) for s in (0.9, 1.2, -1.0))
        count = int(mask.sum())
        policy = policy_loss(x[mask], old[mask], advantages[mask], clip_range=0.2, token_count=count)
        kl = k2_loss(x[mask], old[mask], reference[mask], token_count=count)
        value = value_loss(x[mask], old[mask], advantages[mask], clip_range=0.2, token_count=count)
        (policy.loss + kl + value.loss).backward()
        assert x.grad is not None
        results.append(torch.cat([x.grad.flatten(), torch.stack([*policy, kl, *value]).detach()]))
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].isfinite().all()


@settings(deadline=None, max_examples=50)
@given(data=st.data(), tokens=st.integers(2, 12))
def test_micro_batches_change_no_gradient(data, tokens):
    """T14: sums over the global token count add up, however unevenly the batch is cut."""
    cuts = sorted(data.draw(st.lists(st.integers(1, tokens - 1), unique=True, max_size=4)))
    seed = data.draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    x, old, ref, advantages = torch.randn(4, tokens, dtype=torch.float64, generator=generator)

    def gradient(pieces: list[slice]) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        total, clipped, drift = 0.0, 0.0, 0.0
        for piece in pieces:
            args = (leaf[piece], old[piece])
            policy = policy_loss(*args, advantages[piece], clip_range=0.2, token_count=tokens)
            value = value_loss(*args, advantages[piece], clip_range=0.2, token_count=tokens)
            kl = k2_loss(*args, ref[piece], token_count=tokens)
            (policy.loss + value.loss + kl).backward()
            total += (policy.loss + value.loss + kl).item()
            clipped += float(policy.clip_fraction + value.clip_fraction)
            drift += float(policy.approx_kl)
        assert leaf.grad is not None
        return torch.cat([leaf.grad, f64(total, clipped, drift)])

    edges = [0, *cuts, tokens]
    split = [slice(a, b) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(gradient(split), gradient([slice(0, tokens)]), rtol=0, atol=1e-12)


def test_the_mean_is_over_tokens_not_over_rows():
    # rows (1, 1, 1) and (5): per token (1 + 1 + 1 + 5)/4 = 2, per row (1 + 5)/2 = 3
    zeros = f64(0, 0, 0, 0)
    parts = [
        policy_loss(zeros[p], zeros[p], -f64(1, 1, 1, 5)[p], clip_range=0.2, token_count=4).loss
        for p in (slice(0, 3), slice(3, 4))
    ]
    assert sum(parts).item() == 2


def test_k2_loss_weighs_by_the_ratio_and_does_not_differentiate_it():
    # r = e^{.5}, d = .3: value r d²/2, gradient r d
    logp = f64(-1.0).requires_grad_()
    loss = k2_loss(logp, f64(-1.5), f64(-1.3), token_count=1)
    assert loss.item() == pytest.approx(math.exp(0.5) * 0.045, abs=1e-12)
    loss.backward()
    assert logp.grad is not None
    assert logp.grad.item() == pytest.approx(math.exp(0.5) * 0.3, abs=1e-12)


def test_beta_beside_whitened_advantages():
    assert beta_in_loss(0.1, 0.5) == 0.2
    assert beta_in_loss(0.1, 1.0) == 0.1
