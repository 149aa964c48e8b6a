import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlhf_core.kl import Divergences, divergences, k1, k2, k3, sequence_kl

INF = math.inf
P, Q = (torch.tensor(x, dtype=torch.float64) for x in ([0.5, 0.3, 0.2], [0.4, 0.4, 0.2]))


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def naive_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Σ p (ln p − ln q), where 0 ln 0 = 0."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)


# --- values ---


def test_the_seeds_examples():
    coin = divergences(f64(0.7, 0.3).log(), f64(0.5, 0.5).log())
    close(coin.kl, f64(0.7 * math.log(1.4) + 0.3 * math.log(0.6))[0])
    assert coin.kl.item() == pytest.approx(0.0822828785, abs=5e-11)
    assert k1(f64(0.25).log(), f64(0.05).log()).item() == pytest.approx(math.log(5), abs=1e-12)  # "certainly"


def test_t1_divergences():
    found = divergences(P.log(), Q.log())
    expected = Divergences(
        kl=f64(0.0252671539215706)[0],  # .5 ln 1.25 + .3 ln .75
        kl_ref=f64(0.0258154084550286)[0],  # .4 ln .8 + .4 ln 4/3
        js=f64(0.0063671983339957)[0],
        tv=f64(0.1)[0],  # ½ (.1 + .1 + 0) ≤ √(KL/2) = .1124
        entropy=f64(1.0296530140645737)[0],
        cross_entropy=f64(1.0549201679861442)[0],  # entropy + kl
    )
    for a, b in zip(found, expected, strict=True):
        close(a, b)


def test_t1_estimators():
    logp, ref = P.log(), Q.log()
    d = f64(math.log(1.25), math.log(0.75), 0)
    close(k1(logp, ref), d)
    close(k2(logp, ref), d * d / 2)
    close(k3(logp, ref), f64(0.8, 4 / 3, 1) - 1 + d)  # e^{−d} = q/p
    kl = 0.0252671539215706
    assert (P @ k1(logp, ref)).item() == pytest.approx(kl, abs=1e-12)
    assert (P @ k3(logp, ref)).item() == pytest.approx(kl, abs=1e-12)
    assert (P @ k2(logp, ref)).item() == pytest.approx(0.0248624073448021, abs=1e-12)  # not the KL


def test_t2_no_hidden_clamp():
    logp, ref = f64(-1, -1, -1), f64(0, -15, -30)
    assert k1(logp, ref).tolist() == [-1, 14, 29]
    assert k2(logp, ref).tolist() == [0.5, 98, 420.5]
    close(k3(logp, ref), f64(math.e - 2, math.exp(-14) + 13, math.exp(-29) + 28))
    # The tail is in one direction only: e^10 − 1 − 10 against e^−10 − 1 + 10.
    close(k3(f64(-15, -5), f64(-5, -15)), f64(math.exp(10) - 11, math.exp(-10) + 9), 1e-9)


def test_t5_a_chain_of_two_tokens():
    """Every estimate of the sequence KL has the mean .2985…; the Rao–Blackwell one hardly varies."""
    p1, q1 = f64(0.7, 0.3), f64(0.5, 0.5)
    p2, q2 = torch.stack([f64(0.9, 0.1), f64(0.2, 0.8)]), torch.stack([f64(0.6, 0.4), f64(0.5, 0.5)])
    sequences = list(itertools.product((0, 1), repeat=2))
    first, second = (torch.tensor(x) for x in zip(*sequences, strict=True))
    logp = torch.stack([p1[first], p2[first, second]], dim=1).log()
    ref = torch.stack([q1[first], q2[first, second]], dim=1).log()
    probability = logp.sum(1).exp()
    close(probability, f64(0.63, 0.07, 0.06, 0.24))

    step1 = divergences(p1.log(), q1.log()).kl
    step2 = divergences(p2.log(), q2.log()).kl
    close(torch.stack([step1, *step2]), f64(0.0822828785, 0.2262891612, 0.1927447570), 5e-11)
    everything = torch.ones(4, 2, dtype=torch.bool)
    exact = sequence_kl(torch.stack([step1.expand(4), step2[first]], dim=1), everything)
    sampled = sequence_kl(k1(logp, ref), everything)
    close(sampled, f64(0.74193734, -1.04982212, -1.42711636, -0.04082199), 5e-9)
    for estimate, variance in (
        (sampled, 0.4574377543),
        (exact, 0.0002362977),
        (sequence_kl(k3(logp, ref), everything), 0.1622550769),
        (k3(logp.sum(1), ref.sum(1)), 0.1680537470),
    ):
        mean = (probability @ estimate).item()
        assert mean == pytest.approx(0.2985087184413303, abs=1e-12)
        assert (probability @ (estimate - mean).square()).item() == pytest.approx(variance, abs=5e-11)


def test_sequence_kl_sums_real_tokens():
    per_token = torch.tensor([[1.0, 2, math.nan], [3, INF, 4]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    assert sequence_kl(per_token, mask).tolist() == [3, 7]


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_t16_equal_models_are_at_exactly_zero(dtype):
    logits = (torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 8).to(dtype)
    found = divergences(logits, logits.clone())
    for value in (found.kl, found.kl_ref, found.js, found.tv):
        assert value.tolist() == [0, 0, 0, 0]
    logp = logits.float().log_softmax(-1)
    assert all(k(logp, logp).count_nonzero() == 0 for k in (k1, k2, k3))


def test_t17_k3_of_a_small_difference():
    # d²/2 − d³/6 at 1e-4; exp(−d) − 1 + d gives −1.66e-8 in float32
    d = torch.tensor(1e-4)
    assert k3(d, torch.tensor(0.0)).item() == pytest.approx(4.9998333e-9, rel=0.01)
    d = torch.logspace(-8, math.log10(20), 1_000_000)
    for sign in (1, -1):
        assert (k3(sign * d, torch.zeros_like(d)) >= 0).all()


@pytest.mark.parametrize("vocab", [7, 4096, 50257])
def test_t18_float32_holds_its_bound_down_to_a_kl_of_1e_8(vocab):
    generator = torch.Generator().manual_seed(vocab)
    seen = []
    for scale in (1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0):
        policy = (torch.randn(4, vocab, generator=generator) * 8).clamp(-50, 50)
        reference = (policy + scale * torch.randn(4, vocab, generator=generator)).clamp(-50, 50)
        truth = naive_kl(policy.double().softmax(-1), reference.double().softmax(-1))
        found = divergences(policy, reference).kl
        bound = 1e-5 * truth + 5e-7 * truth.sqrt() + 2e-11
        assert (found >= 0).all()
        assert ((found - truth).abs() <= bound).all(), (scale, found, truth)
        seen += truth.tolist()
    assert min(seen) < 1e-8
    assert max(seen) > 1


def test_the_plain_sum_does_not_hold_that_bound():
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(4, 50257, generator=generator) * 8
    reference = policy + 1e-3 * torch.randn(4, 50257, generator=generator)
    truth = naive_kl(policy.double().softmax(-1), reference.double().softmax(-1))
    a, b = policy.log_softmax(-1), reference.log_softmax(-1)
    plain = (a.exp() * (a - b)).sum(-1)
    assert ((plain - truth).abs() > 1e-5 * truth + 5e-7 * truth.sqrt() + 2e-11).any()


# --- infinities ---


def test_items_that_one_model_excludes():
    half = math.log(2)
    # π = (½, ½, 0), ref = (⅓, ⅓, ⅓): KL = ln 3/2; KL(ref ‖ π) = ∞; m = (5/12, 5/12, 1/6)
    policy, reference = f64(0, 0, -INF), f64(0, 0, 0)
    found = divergences(policy, reference)
    js = (math.log(6 / 5) + 2 / 3 * math.log(4 / 5) + 1 / 3 * math.log(2)) / 2
    close(torch.stack(found), f64(math.log(1.5), INF, js, 1 / 3, half, math.log(3)))
    turned = divergences(reference, policy)
    close(torch.stack(turned), f64(INF, math.log(1.5), js, 1 / 3, math.log(3), INF))


def test_items_that_both_exclude_are_as_if_absent():
    excluded = divergences(torch.cat([P.log(), f64(-INF)]), torch.cat([Q.log(), f64(-INF)]))
    close(torch.stack(excluded), torch.stack(divergences(P.log(), Q.log())))


def test_disjoint_supports():
    found = divergences(f64(0, -INF), f64(-INF, 0))
    close(torch.stack(found), f64(INF, INF, math.log(2), 1, 0, INF))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_logits_neither_overflow_nor_turn_into_nan(dtype):
    policy, reference = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 0]], dtype=dtype)
    assert divergences(policy, reference).kl.item() == 2e4  # all mass on item 0: ln 1 − (−2e4)


def test_infinite_estimates():
    minus = f64(-INF)
    zero = f64(0)
    assert (k1(zero, minus).item(), k2(zero, minus).item(), k3(zero, minus).item()) == (INF, INF, INF)
    assert (k1(minus, zero).item(), k2(minus, zero).item(), k3(minus, zero).item()) == (-INF, INF, INF)


# --- laws ---

logit_pairs = (
    st.integers(2, 9)
    .flatmap(lambda vocab: arrays("float64", (2, vocab), elements=st.floats(-30, 30)))
    .map(torch.from_numpy)
)


@given(logit_pairs)
def test_laws_of_divergences(pair):
    policy, reference = pair
    found = divergences(policy, reference)
    turned = divergences(reference, policy)
    assert found.kl >= 0
    assert 0 <= found.js <= math.log(2) + 1e-12
    assert found.tv <= math.sqrt(found.kl / 2) + 1e-12  # Pinsker
    close(found.cross_entropy, found.entropy + found.kl)
    close(torch.stack([found.kl_ref, found.js, found.tv]), torch.stack([turned.kl, turned.js, turned.tv]))
    close(found.kl, naive_kl(policy.softmax(-1), reference.softmax(-1)))


@given(logit_pairs)
def test_k1_and_k3_estimate_the_kl(pair):
    logp, ref = pair.log_softmax(-1)
    kl = divergences(logp, ref).kl.item()
    for estimator in (k1, k3):
        assert (logp.exp() @ estimator(logp, ref)).item() == pytest.approx(kl, abs=1e-11)
    assert (k3(logp, ref) >= 0).all()


@given(logit_pairs, st.floats(-100, 100), st.floats(-100, 100))
def test_logits_have_no_zero_point(pair, shift, other):
    policy, reference = pair
    shifted = divergences(policy + shift, reference + other)
    close(torch.stack(shifted), torch.stack(divergences(policy, reference)))
