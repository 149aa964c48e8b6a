"""What the scores of every kernel are held against: float64, torch's own operations, one row at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_core.kl import divergences
from rlhf_core.logprobs import token_logprobs

INF, NAN = math.inf, math.nan
# (policy logits, reference logits, ids, temperature), float32 on the CPU → scores by name, float64 on the CPU
Run = Callable[[Tensor, Tensor, Tensor, float], dict[str, Tensor]]
OF_ONE = {*("policy_logprob", "reference_logprob", "entropy", "entropy_ref", "policy_rank", "reference_rank")}


def assert_t18(run: Run, *, vocab: int, temperature: float, rows: int) -> None:
    """Within |error| ≤ 1e-5 KL + 5e-7 √KL + 2e-11 from a KL of 1e-8 to one above 1."""
    generator = torch.Generator().manual_seed(vocab)
    ids = torch.randint(vocab, (rows,), generator=generator)
    seen = []
    for scale in (1e-4, 3e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0):
        policy = (torch.randn(rows, vocab, generator=generator) * 8).clamp(-50, 50)
        reference = (policy + scale * torch.randn(rows, vocab, generator=generator)).clamp(-50, 50)
        truth = divergences(policy.double(), reference.double(), temperature=temperature)
        found = run(policy, reference, ids, temperature)
        for name in ("kl", "kl_ref", "js"):
            kl, exact = found[name], getattr(truth, name)
            assert ((kl - exact).abs() <= 1e-5 * exact + 5e-7 * exact.sqrt() + 2e-11).all(), scale
        for side, logits in (("policy", policy), ("reference", reference)):
            exact = token_logprobs(logits.double(), ids, temperature=temperature)
            assert ((found[f"{side}_logprob"] - exact).abs() <= 2e-6 + 4e-7 * exact.abs()).all()
            larger = (logits > logits.gather(1, ids[:, None])).sum(1)
            assert torch.equal(found[f"{side}_rank"], 1.0 + larger)
        for name, exact in (
            ("entropy", truth.entropy),
            ("cross_entropy", truth.cross_entropy),
            (
                "entropy_ref",
                divergences(reference.double(), policy.double(), temperature=temperature).entropy,
            ),
        ):
            torch.testing.assert_close(found[name], exact, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(found["tv"], truth.tv, rtol=1e-5, atol=2e-7)
        seen += truth.kl.tolist()
    assert min(seen) < 1e-8
    assert max(seen) > 1


def pair(
    *, vocab: int, scale: float, noise: float, excluded: float, seed: int, rows: int = 3
) -> tuple[Tensor, Tensor]:
    """Two sets of logits, a share of them −∞; no two finite ones are further apart than 40.

    At a temperature of 0.5 these are 80 nats: e^-87 and less is nothing, also to an item that one excludes.
    """
    generator = torch.Generator().manual_seed(seed)
    policy = (torch.randn(rows, vocab, generator=generator) * scale).clamp(-20, 20)
    reference = (policy + torch.randn(rows, vocab, generator=generator) * noise).clamp(-20, 20)
    for logits in (policy, reference):  # item 0 always keeps some mass
        logits[:, 1:][torch.rand(rows, vocab - 1, generator=generator) < excluded] = -INF
    return policy, reference


def assert_float64(run: Run, policy: Tensor, reference: Tensor, temperature: float) -> None:
    """Infinite where float64 is, close where it is not, never negative."""
    truth = divergences(policy.double(), reference.double(), temperature=temperature)
    found = run(policy, reference, torch.zeros(len(policy), dtype=torch.long), temperature)
    for name, exact in truth._asdict().items():
        infinite = exact.isinf()
        assert torch.equal(found[name].isinf(), infinite), name
        torch.testing.assert_close(found[name][~infinite], exact[~infinite], rtol=2e-5, atol=3e-6)
        assert not (found[name] < 0).any()


def assert_no_number_without_mass(run: Run) -> None:
    """A row of −∞, with NaN or with +∞ has NaN, and its neighbours do not."""
    policy = torch.tensor([[0.0, 1.0], [-INF, -INF], [NAN, 0.0], [INF, 0.0], [0.0, 1.0]])
    reference = torch.zeros(5, 2)
    for a, b, one in ((policy, reference, "policy_logprob"), (reference, policy, "reference_logprob")):
        found = run(a, b, torch.zeros(5, dtype=torch.long), 1.0)
        for name in {*found} - OF_ONE | {one}:
            assert found[name].isnan().tolist() == [False, True, True, True, False], name


def assert_zero_of_equals(run: Run, *, vocab: int) -> None:
    """Equal logits are at exactly 0."""
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(0)) * 8
    found = run(logits, logits.clone(), torch.zeros(4, dtype=torch.long), 0.7)
    for name in ("kl", "kl_ref", "js", "tv"):
        assert found[name].tolist() == [0, 0, 0, 0]
    for one, other in (
        *(("policy_logprob", "reference_logprob"), ("entropy", "entropy_ref")),
        *(("entropy", "cross_entropy"), ("policy_rank", "reference_rank")),
    ):
        assert torch.equal(found[one], found[other])
