import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.chunked_logprobs import PolicyScores
from rlhf_core.config.ppo import PPOConfig
from rlhf_core.kl import k3
from rlhf_core.losses import beta_in_loss, k2_loss, k3_loss, policy_loss, ratio_k1_loss, value_loss
from rlhf_core.objective import Tokens, objective

KL_LOSSES = (k2_loss, k3_loss, ratio_k1_loss)
KL_SETTINGS = [
    *({"penalty": penalty} for penalty in ("k1", "hybrid", "exact")),
    *({"penalty": "none", "loss": loss} for loss in ("k2", "k3", "ratio_k1")),
]


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
    assert result.clip_fraction.item() == pytest.approx(1 / 3, abs=1e-12)
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


def test_value_loss_without_a_clip():
    # ½V² = (2, 0, .605)
    values = f64(2, 0, 1.1).requires_grad_()
    result = value_loss(values, f64(1, 1, 1), f64(0, 0, 0), clip_range=None, token_count=3)
    assert result.loss.item() == pytest.approx(2.605 / 3, abs=1e-12)
    assert result.clip_fraction.item() == 0
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
        drifts = [loss(x[mask], old[mask], reference[mask], token_count=count) for loss in KL_LOSSES]
        kl = torch.stack(drifts).sum()
        value = value_loss(x[mask], old[mask], advantages[mask], clip_range=0.2, token_count=count)
        (policy.loss + kl + value.loss).backward()
        assert x.grad is not None
        results.append(torch.cat([x.grad.flatten(), torch.stack([*policy, kl, *value]).detach()]))
    assert all(torch.equal(result, results[0]) for result in results)
    assert results[0].isfinite().all()


@settings(max_examples=50)
@given(data=st.data(), tokens=st.integers(2, 12), kl=st.sampled_from(KL_SETTINGS))
def test_micro_batches_change_no_gradient(data, tokens, kl):
    """T14: every term and rate adds up over the global token count, however unevenly the batch is cut."""
    cuts = sorted(data.draw(st.lists(st.integers(1, tokens - 1), unique=True, max_size=4)))
    seed = data.draw(st.integers(0, 2**16))
    drawn = torch.randn(8, tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logprob, entropy, exact, value = drawn[:4]
    options = PPOConfig.model_validate(
        {
            "model": {"name": "none"},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},
            "kl": kl,
            "loss": {
                "dual_clip": 1.5,
                "entropy_coefficient": 0.1,
                "value_clip_range": data.draw(st.sampled_from([0.2, None])),
            },
            "optimization": {"steps": 1},
        }
    )

    def summed(pieces: list[slice]) -> tuple[torch.Tensor, dict[str, float]]:
        leaf = torch.stack([logprob, entropy, exact, value]).requires_grad_()
        total: dict[str, float] = {}
        for piece in pieces:
            tokens_of_it = Tokens(drawn[4, piece], *drawn[4:, piece])
            terms, report = objective(
                PolicyScores(*leaf[:3, piece]),
                leaf[3, piece],
                tokens_of_it,
                options,
                beta_in_loss=0.3,
                token_count=tokens,
            )
            torch.stack(list(terms.values())).sum().backward()
            total = {name: total.get(name, 0.0) + number for name, number in report.items()}
        assert leaf.grad is not None
        del total["policy/ratio_max"]
        return leaf.grad, total

    edges = [0, *cuts, tokens]
    split = [slice(a, b) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(summed(split), summed([slice(0, tokens)]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kl", KL_SETTINGS, ids=str)
def test_the_terms_of_each_setting(kl):
    """One token on policy: logp −1, reference −1.3, exact KL .2, entropy 2; A = V = R = 0, β_L = .5, c = .1."""
    options = PPOConfig.model_validate(
        {
            "model": {"name": "none"},
            "data": {"prompts": ["."]},
            "reward": {"kind": "sentiment"},
            "kl": kl,
            "loss": {"entropy_coefficient": 0.1},
            "optimization": {"steps": 1},
        }
    )
    tokens = Tokens(f64(-1), f64(-1.3), f64(0), f64(0), f64(0))
    scores = PolicyScores(f64(-1), f64(2), f64(0.2))
    terms, report = objective(scores, f64(0), tokens, options, beta_in_loss=0.5, token_count=1)
    drift = {"exact": 0.2, "k2": 0.045, "k3": math.exp(-0.3) - 1 + 0.3, "ratio_k1": 0.3}  # d = .3
    charged = kl.get("loss", kl["penalty"])
    expected = {"loss/policy": 0.0, "value/loss": 0.0, "loss/entropy": -0.2}
    if charged in drift:
        expected["loss/kl"] = 0.5 * drift[charged]
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-12)
    assert {name: report[name] for name in terms} == pytest.approx(expected, abs=1e-12)


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


def test_ratio_k3_and_ratio_k1_differentiate_the_ratio():
    # r = e^{.5}, d = .3: r k3 has the gradient r k3 + r (1 − e^{−d}) = r d; r k1 has r d + r
    for loss, value, slope in (
        (k3_loss, math.exp(-0.3) - 1 + 0.3, 0.3),
        (ratio_k1_loss, 0.3, 1.3),
    ):
        logp = f64(-1.0).requires_grad_()
        found = loss(logp, f64(-1.5), f64(-1.3), token_count=1)
        assert found.item() == pytest.approx(math.exp(0.5) * value, abs=1e-12)
        found.backward()
        assert logp.grad is not None
        assert logp.grad.item() == pytest.approx(math.exp(0.5) * slope, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_t25_the_tails_of_k3(dtype):
    """e^{10} − 1 − 10 = 22015.4658 where the policy has all but dropped the token, e^{−10} − 1 + 10 = 9.0000454
    the other way round; the backward of r k3 is r d there."""
    for logp, ref, value in ((-15.0, -5.0, 22015.4658), (-5.0, -15.0, 9.0000454)):
        leaf, ref_logp = (torch.tensor([x], dtype=dtype) for x in (logp, ref))
        assert k3(leaf, ref_logp).item() == pytest.approx(value, rel=3e-8 if dtype == torch.float64 else 1e-6)
        leaf.requires_grad_()
        loss = k3_loss(leaf, leaf.detach(), ref_logp, token_count=1)  # on policy
        assert loss.item() == pytest.approx(value, rel=1e-6)
        loss.backward()
        assert leaf.grad is not None
        assert leaf.grad.item() == pytest.approx(logp - ref, rel=1e-6)


def test_r_k3_is_finite_where_k3_is_not():
    """d = −120: e^{120} overflows float32, r = e^{−119} brings it back: r k3 = e^{ref − old} + r(d − 1) = e."""
    logp = torch.tensor([-121.0], requires_grad=True)
    loss = k3_loss(logp, torch.tensor([-2.0]), torch.tensor([-1.0]), token_count=1)
    assert k3(logp, torch.tensor([-1.0])).isinf().all()
    assert loss.item() == pytest.approx(math.e, rel=1e-6)
    loss.backward()
    assert logp.grad is not None
    assert logp.grad.abs().item() <= 1e-45 * 120  # r d


def test_beta_beside_whitened_advantages():
    assert beta_in_loss(0.1, 0.5) == 0.2
    assert beta_in_loss(0.1, 1.0) == 0.1
