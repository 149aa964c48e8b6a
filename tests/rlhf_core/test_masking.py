import math

import pytest
import torch

from rlhf_core.masking import explained_variance, masked_mean, masked_sum, masked_whiten

NAN, INF = math.nan, math.inf


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_sums_and_means_take_real_tokens_only():
    x = torch.stack([f64(1, 1, 1), f64(5, NAN, INF)])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert masked_sum(x, mask).item() == 8  # 1 + 1 + 1 + 5
    assert masked_sum(x, mask, dim=-1).tolist() == [3, 5]
    assert masked_mean(x, mask).item() == 2  # 8 / 4 tokens, not (1 + 5) / 2 rows


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, -1e10])
def test_garbage_under_the_mask_reaches_no_gradient(garbage):
    x = f64(1, garbage, 3).requires_grad_()
    mask = torch.tensor([True, False, True])
    masked_mean(x, mask).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.5, 0, 0.5]
    # Whitening squares: 2 · garbage would be multiplied by 0. All gradients of Σ w (x − μ)/σ with w = (1, ·, 0):
    # values ±1/√2 whatever x, so moving x moves nothing (but by the 1e-8 in σ).
    masked_whiten(x, mask).values[0].backward()
    assert x.grad[1].item() == 0
    assert x.grad[[0, 2]].tolist() == pytest.approx([0.5, 0.5], abs=1e-8)


def test_whitening_is_bessel_corrected():
    # mean 2.5, σ² = (2.25 + .25 + .25 + 2.25) / 3 = 5/3
    values, std = masked_whiten(f64(1, 2, 3, 4), torch.ones(4, dtype=torch.bool))
    sigma = math.sqrt(5 / 3 + 1e-8)
    assert std.item() == pytest.approx(sigma, abs=1e-15)
    torch.testing.assert_close(values, f64(-1.5, -0.5, 0.5, 1.5) / sigma, rtol=0, atol=1e-15)
    torch.testing.assert_close(values[:2], f64(-1.161895, -0.38729833), rtol=0, atol=1e-8)


def test_whitening_ignores_what_is_masked():
    mask = torch.tensor([True, True, False, True, False, True, False])
    whitened = masked_whiten(f64(1, 2, 100, 3, -50, 4, NAN), mask)
    alone = masked_whiten(f64(1, 2, 3, 4), torch.ones(4, dtype=torch.bool))
    assert torch.equal(whitened.values[mask], alone.values)
    assert torch.equal(whitened.std, alone.std)
    assert whitened.values[~mask].tolist() == [0, 0, 0]


@pytest.mark.parametrize("values", [[7.5], [10.1] * 6, [0.1, 0.1 + 1e-7], []])
def test_whitening_without_variance_gives_zeros(values):
    x = torch.tensor([*values, NAN], dtype=torch.float32)
    mask = torch.tensor([True] * len(values) + [False])
    whitened = masked_whiten(x, mask)
    assert whitened.values.tolist() == [0] * (len(values) + 1)
    assert whitened.std.item() == pytest.approx(1e-4, rel=1e-3)  # sqrt(0 + 1e-8)


def test_explained_variance():
    # errors (0, 0, 0, −1): variance 3/16; returns (1, 2, 3, 4): variance 5/4; 1 − .1875/1.25 = .85
    mask = torch.tensor([True, True, True, True, False])
    score = explained_variance(f64(1, 2, 3, 4, NAN), f64(1, 2, 3, 5, 0), mask)
    assert score.item() == pytest.approx(0.85, abs=1e-12)
    assert explained_variance(f64(2, 2), f64(1, 5), torch.tensor([True, True])).item() == 0
