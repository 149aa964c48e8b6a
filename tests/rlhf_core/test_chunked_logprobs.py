"""The gradient that is computed by formula, chunk by chunk, against autograd of the definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.chunked import chunked_scores
from rlhf_core.chunked_logprobs import Reference, chunked_logprobs
from rlhf_core.kernels import scores as native
from rlhf_core.kl import divergences
from rlhf_core.logprobs import entropy, token_logprobs
from tests.live_bytes import LiveBytes


@pytest.fixture(params=["kernel", "torch"])
def path(request, monkeypatch):
    """Which of the two ways is taken: float32 on a CPU with a compiler, or anything else."""
    if request.param == "torch":
        monkeypatch.setattr(native, "fits", lambda *_: False)
    return request.param


class Head(torch.nn.Linear):
    """A head with a bias, whose logits are soft-capped."""

    def forward(self, hidden):
        return torch.tanh(super().forward(hidden) / 5) * 5


def problem(tokens, vocab, seed, dtype):
    """Hidden states of both models, their heads, ids and a random weight for each of three outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        heads = [Head(width, vocab).to(dtype) for width in (3, 5)]
    hidden, reference_hidden = (
        torch.randn(tokens, width, generator=generator, dtype=dtype) * 2 for width in (3, 5)
    )
    ids = torch.randint(vocab, (tokens,), generator=generator)
    of = torch.randn(3, tokens, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), reference_hidden, heads, ids, of


def gradients(found, of, hidden, head):
    loss = sum((weights * values).sum() for weights, values in zip(of, found, strict=True))
    return torch.autograd.grad(loss, [hidden, *head.parameters()])


def by_definition(hidden, reference_hidden, heads, ids, of, temperature, with_reference):
    """The same from all logits at once, by autograd."""
    logits = heads[0](hidden)
    kl = torch.zeros(len(ids), dtype=logits.dtype)
    if with_reference:
        kl = divergences(logits, heads[1](reference_hidden).detach(), temperature=temperature).kl
    found = (
        token_logprobs(logits, ids, temperature=temperature),
        entropy(logits, temperature=temperature),
        kl,
    )
    return found, gradients(found, of, hidden, heads[0])


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(2, 30),
    budget=st.integers(0, 200),
    temperature=st.sampled_from([0.7, 1.0, 2.0]),
    with_reference=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_are_those_of_the_definition(
    tokens, vocab, budget, temperature, with_reference, seed
):
    """float64, 1e-9 of the largest entry; whether the logits fit the budget or are made again."""
    hidden, reference_hidden, heads, ids, of = problem(tokens, vocab, seed, torch.float64)
    found = chunked_logprobs(
        hidden,
        heads[0],
        ids,
        weights=list(heads[0].parameters()),
        reference=Reference(reference_hidden, heads[1]) if with_reference else None,
        temperature=temperature,
        chunk_bytes=budget * vocab * 8,
    )
    expected, expected_gradients = by_definition(
        hidden, reference_hidden, heads, ids, of, temperature, with_reference
    )
    torch.testing.assert_close(tuple(found), expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(gradients(found, of, hidden, heads[0]), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize("budget_rows", [10_000, 40, 0])
@pytest.mark.parametrize("with_reference", [False, True])
def test_the_kernel_gives_them_in_float32(budget_rows, with_reference):
    tokens, vocab = 50, 3001
    hidden, reference_hidden, heads, ids, of = problem(tokens, vocab, 0, torch.float32)
    found = chunked_logprobs(
        hidden,
        heads[0],
        ids,
        weights=list(heads[0].parameters()),
        reference=Reference(reference_hidden, heads[1]) if with_reference else None,
        temperature=0.7,
        chunk_bytes=budget_rows * vocab * 4,
    )
    ours = gradients(found, of, hidden, heads[0])
    wide, reference_hidden, heads, ids, of = (
        hidden.detach().double().requires_grad_(),
        reference_hidden.double(),
        [head.double() for head in heads],
        ids,
        of.double(),
    )
    _, expected = by_definition(wide, reference_hidden, heads, ids, of, 0.7, with_reference)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-6 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("budget_rows", [10_000, 16])
def test_to_the_bit_what_the_rollout_was_told(path, budget_rows):
    """So the first ratio of an update is exactly 1."""
    hidden, reference_hidden, heads, ids, _ = problem(37, 500, 1, torch.float32)
    options = {"temperature": 0.7, "chunk_bytes": budget_rows * 500 * 4}
    told = chunked_scores(hidden, reference_hidden, *heads, ids, **options)
    for reference in (None, Reference(reference_hidden, heads[1])):
        found = chunked_logprobs(hidden, heads[0], ids, reference=reference, **options)
        assert torch.equal(found.logprob, told.policy_logprob)
        assert torch.equal(found.entropy, told.entropy)
        assert torch.equal(found.kl, told.kl if reference else torch.zeros(37))


@pytest.mark.parametrize("with_reference", [False, True])
def test_backward_keeps_to_the_budget(with_reference):
    """On top of it come the gradients themselves, and once more while they are summed."""
    tokens, vocab = 200, 2000
    hidden, reference_hidden, heads, ids, of = problem(tokens, vocab, 2, torch.float32)
    heads[0].requires_grad_(False)
    budget = 64 * vocab * 4
    everything = tokens * vocab * 4
    plain = [torch.nn.functional.linear] * 2
    fns = [lambda h, f=f, head=head: f(h, head.weight) for f, head in zip(plain, heads, strict=True)]
    reference = Reference(reference_hidden, fns[1]) if with_reference else None
    found = chunked_logprobs(hidden, fns[0], ids, reference=reference, chunk_bytes=budget)
    loss = sum((weights * values).sum() for weights, values in zip(of, found, strict=True))
    with LiveBytes(hidden, reference_hidden, ids, of, heads[0].weight, heads[1].weight) as memory:
        loss.backward()
    assert hidden.grad is not None
    assert budget / 3 < memory.peak <= budget + 4 * hidden.nbytes + 16 * of.nbytes < everything


def test_a_head_that_answers_with_what_it_was_given_keeps_it(path):
    """A table of logits, as in the fixed points' tests; whether or not it is made again."""
    for chunk_bytes in (0, 10**6):
        logits, other = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0))
        before, other_before = logits.clone(), other.clone()
        logits.requires_grad_()
        found = chunked_logprobs(
            logits,
            lambda h: h,
            torch.arange(20),
            reference=Reference(other, lambda h: h),
            chunk_bytes=chunk_bytes,
        )
        (found.logprob.sum() + found.kl.sum()).backward()
        assert torch.equal(logits.detach(), before)
        assert torch.equal(other, other_before)
        assert logits.grad.sum(dim=1).abs().max() < 1e-6  # a softmax does not see a shift


def test_excluded_items_have_no_gradient(path):
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]], requires_grad=True)
    reference = Reference(torch.tensor([[0.0, 1.0, -torch.inf, 0.0]]), lambda h: h * 1)
    found = chunked_logprobs(logits, lambda h: h * 1, torch.tensor([1]), reference=reference)
    (found.logprob + 0.3 * found.entropy + 0.7 * found.kl).sum().backward()
    assert logits.grad[0, 2] == 0
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0.1
