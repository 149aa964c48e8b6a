"""The Triton kernels against float64: on a CUDA device, or through Triton's interpreter on the CPU.

TRITON_INTERPRET=1 python -m pytest tests/gpu/test_kernels.py      where Triton is installed; needs no driver
"""

import os
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_core.kernels import cuda
from rlhf_core.kernels import scores as native
from rlhf_core.kl import divergences, kl_terms
from rlhf_core.logprobs import token_logprobs
from tests.rlhf_core import kernel_oracles as oracles

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA device, or TRITON_INTERPRET=1"
    ),
    pytest.mark.filterwarnings(
        "ignore:(invalid|divide|overflow):RuntimeWarning:triton"
    ),  # the interpreter's numpy
]


@pytest.fixture(scope="module")
def triton() -> ModuleType:
    pytest.importorskip("triton", reason="Triton is not in the CPU environment")
    from rlhf_core.kernels import triton_scores

    return triton_scores


@pytest.fixture(scope="module")
def run(triton: ModuleType) -> oracles.Run:
    def run(policy: Tensor, reference: Tensor, ids: Tensor, temperature: float) -> dict[str, Tensor]:
        there = (x.to(DEVICE) for x in (policy, reference, ids))
        found = triton.scores(*there, temperature=temperature).double().cpu()
        return dict(zip(native.OUTPUTS, found.unbind(1), strict=True))

    return run


@pytest.mark.parametrize(
    ("vocab", "temperature"),
    [(7, 1.0), (7, 0.5), (4096, 1.0), (4096, 3.0), (50257, 1.0), (50257, 0.5), (151936, 1.0)],
)
def test_t18_it_holds_the_bound_down_to_a_kl_of_1e_8(
    run: oracles.Run, vocab: int, temperature: float
) -> None:
    oracles.assert_t18(run, vocab=vocab, temperature=temperature, rows=2 if INTERPRETED else 8)


@settings(max_examples=200)
@given(
    vocab=st.integers(1, 2100),  # a block is 1024
    scale=st.floats(0, 40),
    noise=st.floats(0, 40),
    temperature=st.floats(0.5, 5),
    excluded=st.floats(0, 0.9),
    seed=st.integers(0, 2**16),
)
def test_it_says_what_float64_says(
    run: oracles.Run,
    vocab: int,
    scale: float,
    noise: float,
    temperature: float,
    excluded: float,
    seed: int,
) -> None:
    policy, reference = oracles.pair(vocab=vocab, scale=scale, noise=noise, excluded=excluded, seed=seed)
    oracles.assert_float64(run, policy, reference, temperature)


@pytest.mark.parametrize("vocab", [16383, 16384, 16385, 32769])  # a part is 16384
def test_it_says_what_float64_says_where_parts_end(run: oracles.Run, vocab: int) -> None:
    policy, reference = oracles.pair(vocab=vocab, scale=9, noise=1, excluded=0.3, seed=vocab)
    policy[0, :16384] = -oracles.INF  # a part without mass
    policy[0, -1] = 1.0
    oracles.assert_float64(run, policy, reference, 1.0)


def test_without_mass_or_with_nan_there_is_no_number_and_the_neighbours_have_theirs(run: oracles.Run) -> None:
    oracles.assert_no_number_without_mass(run)


def test_equal_logits_are_at_exactly_zero(run: oracles.Run) -> None:
    oracles.assert_zero_of_equals(run, vocab=20000)


def test_a_row_does_not_depend_on_its_neighbours_or_the_level(triton: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    policy, reference = (torch.randn(9, 20001, generator=generator).to(DEVICE) * 5 for _ in range(2))
    ids = torch.randint(20001, (9,), generator=generator).to(DEVICE)
    everything = triton.scores(policy, reference, ids, temperature=1.0)
    alone = [
        triton.scores(policy[i : i + 1], reference[i : i + 1], ids[i : i + 1], temperature=1.0)
        for i in range(9)
    ]
    assert torch.equal(everything, torch.cat(alone))
    for level, columns in ((native.LOGPROBS_ONLY, 2), (native.WITHOUT_JS, 10)):
        found = triton.scores(policy, reference, ids, temperature=1.0, level=level)
        assert torch.equal(found[:, :columns], everything[:, :columns])
        assert found[:, columns:].count_nonzero() == 0


def test_logits_may_be_a_part_of_a_wider_tensor_and_there_may_be_none(triton: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 5, 40, generator=generator).to(DEVICE)
    ids = torch.arange(5, device=DEVICE)
    part = triton.scores(policy[:, :30], reference.T[10:].T, ids, temperature=1.0)
    across = triton.scores(policy[:, :30].T.contiguous().T, reference[:, 10:], ids, temperature=1.0)
    whole = triton.scores(policy[:, :30].clone(), reference[:, 10:].clone(), ids, temperature=1.0)
    assert torch.equal(part, whole)
    assert torch.equal(across, whole)
    assert triton.scores(policy[:0], reference[:0], ids[:0], temperature=1.0).shape == (
        0,
        len(native.OUTPUTS),
    )
    assert triton.top_terms(policy[:0], reference[:0], k=3, temperature=1.0).ids.shape == (0, 3)


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_float64_autograds(
    triton: ModuleType, temperature: float, with_reference: bool
) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, reference = oracles.pair(vocab=17000, scale=4, noise=0.5, excluded=0, seed=3, rows=4)
    logits[:, 5], reference[:, 5] = -oracles.INF, -oracles.INF  # an item that neither has
    ids = torch.tensor([0, 16999, 16384, 7])
    weights = torch.randn(3, 4, generator=generator)
    weights[2] *= with_reference

    a = logits.double().requires_grad_()
    truth = divergences(a.masked_fill(a.isinf(), -1e300), reference.double(), temperature=temperature)
    quantities = (token_logprobs(a, ids, temperature=temperature), truth.entropy, truth.kl)
    loss = sum((w * q).sum() for w, q in zip(weights.double(), quantities, strict=True))
    (exact,) = torch.autograd.grad(loss, a)

    theirs = reference.to(DEVICE) if with_reference else None
    for out in (torch.full_like(logits, oracles.NAN).to(DEVICE), theirs):  # also written over the reference
        if out is None:
            continue
        triton.gradient(
            *(logits.to(DEVICE), theirs, ids.to(DEVICE)),
            weights=native.LossWeights(*weights.to(DEVICE)),
            entropy=truth.entropy.detach().float().to(DEVICE),
            kl=truth.kl.detach().float().to(DEVICE),
            temperature=temperature,
            out=out,
        )
        torch.testing.assert_close(out.double().cpu(), exact, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("k", "scale"), [(1, 1.0), (20, 1.0), (20, 0.01), (20, 0.0)])
def test_the_largest_terms_largest_first_and_of_equal_ones_the_first(
    triton: ModuleType, monkeypatch: pytest.MonkeyPatch, k: int, scale: float
) -> None:
    monkeypatch.setattr(triton, "KEY_BYTES", 2 * 8 * 17000)  # two rows at a time
    policy, reference = oracles.pair(vocab=17000, scale=4, noise=scale, excluded=0.1, seed=k)
    top = triton.top_terms(policy.to(DEVICE), reference.to(DEVICE), k=k, temperature=0.7)
    ids, policy_logprob, reference_logprob, term = (x.cpu() for x in top)
    log_p, log_q = ((x.double() / 0.7).log_softmax(-1) for x in (policy, reference))
    terms = kl_terms(log_p, log_q)
    expected = terms.sort(dim=-1, descending=True).values[:, :k]
    torch.testing.assert_close(term.double(), expected, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(terms.gather(1, ids.long()), expected, rtol=2e-5, atol=1e-9)
    for found, exact in ((policy_logprob, log_p), (reference_logprob, log_q)):
        torch.testing.assert_close(found.double(), exact.gather(1, ids.long()), rtol=1e-5, atol=1e-5)
    for row, items, values in zip(terms, ids.tolist(), expected, strict=True):
        assert len({*items}) == k
        for tie in {values[i].item() for i in range(k)} & {0.0, oracles.INF}:
            every = (row == tie).nonzero()[:, 0].tolist()
            assert [i for i in items if row[i] == tie] == every[: sum(1 for v in values if v == tie)]


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
def test_cuda_logits_go_to_it(triton: ModuleType) -> None:
    assert cuda.status() == "triton"
    policy, reference = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(5)
    assert native.fits(policy.cuda(), reference.cuda())
    assert not native.fits(policy.cuda(), reference)
    assert not native.fits(policy.cuda().bfloat16())
    here = native.scores(policy, reference, ids, temperature=1.0)
    there = native.scores(policy.cuda(), reference.cuda(), ids.cuda(), temperature=1.0)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)
