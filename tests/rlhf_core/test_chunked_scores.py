import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.chunked import TokenScores, chunked_scores
from rlhf_core.kernels import scores as native
from rlhf_core.kl import divergences
from rlhf_core.logprobs import entropy, token_logprobs
from tests.live_bytes import LiveBytes


@pytest.fixture(params=["kernel", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two ways is taken: float32 on a CPU with a compiler, or anything else."""
    if request.param == "torch":
        monkeypatch.setattr(native, "fits", lambda *_: False)
    return str(request.param)


class Head:
    """A linear head that records the rows it was asked for, and how many of its answers are still alive."""

    def __init__(self, vocab: int, hidden: int, seed: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(hidden, vocab, generator=generator, dtype=dtype)
        self.rows: list[int] = []
        self.answers: list[weakref.ref[torch.Tensor]] = []
        self.alive_at_call: list[int] = []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.alive_at_call.append(sum(answer() is not None for answer in self.answers))
        logits = hidden @ self.weight
        if len(hidden):
            self.rows.append(len(hidden))
            self.answers.append(weakref.ref(logits))
        return logits


def dense(
    policy: torch.Tensor, reference: torch.Tensor, ids: torch.Tensor, temperature: float
) -> TokenScores:
    """The same from all logits at once."""
    found = divergences(policy, reference, temperature=temperature)
    logprobs = (token_logprobs(x, ids, temperature=temperature) for x in (policy, reference))
    ranks = [
        torch.tensor([sorted(row, reverse=True).index(row[i]) + 1.0 for row, i in pairs], dtype=torch.float64)
        for pairs in (zip(x.tolist(), ids.tolist(), strict=True) for x in (policy, reference))
    ]
    return TokenScores(
        *logprobs,
        **found._asdict(),
        entropy_ref=entropy(reference, temperature=temperature),
        policy_rank=ranks[0],
        reference_rank=ranks[1],
    )


@settings(max_examples=60)
@given(
    tokens=st.integers(0, 70),
    vocab=st.integers(2, 40),
    budget=st.integers(0, 200),
    temperature=st.sampled_from([0.7, 1.0, 2.0]),
    seed=st.integers(0, 2**16),
)
def test_chunks_change_nothing(tokens, vocab, budget, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    # The hidden sizes differ, as they may; identical heads would hide a mix-up.
    states = [torch.randn(tokens, width, generator=generator, dtype=torch.float64) for width in (3, 5)]
    heads = [Head(vocab, width, seed + width, torch.float64) for width in (3, 5)]
    ids = torch.randint(vocab, (tokens,), generator=generator)
    found = chunked_scores(*states, *heads, ids, temperature=temperature, chunk_bytes=budget * vocab * 8)
    expected = dense(*(h @ head.weight for h, head in zip(states, heads, strict=True)), ids, temperature)
    for a, b in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


# A budget of n rows of float32 logits leaves n / 2 rows per model and chunk to the kernel, which has no
# temporaries, and (n − 14 temporaries) / 2 to torch; at least one.
@pytest.mark.parametrize(
    ("budget_rows", "of_kernel", "of_torch"),
    [
        (60, [30, 30, 30, 10], [23, 23, 23, 23, 8]),
        (64, [32, 32, 32, 4], [25, 25, 25, 25]),
        (10_000, [100], [100]),
        (13, [6] * 16 + [4], [1] * 100),
        (0, [1] * 100, [1] * 100),
    ],
)
def test_one_chunk_of_each_model_is_resident(path, budget_rows, of_kernel, of_torch):
    rows = of_kernel if path == "kernel" else of_torch
    vocab = 1000
    policy, reference = Head(vocab, 8, 1), Head(vocab, 8, 2)
    hidden = torch.randn(100, 8)
    chunked_scores(
        hidden,
        hidden,
        policy,
        reference,
        torch.zeros(100, dtype=torch.int64),
        chunk_bytes=budget_rows * vocab * 4,
    )
    for head in (policy, reference):
        assert head.rows == rows
        assert set(head.alive_at_call) == {0}


@pytest.mark.parametrize("tokens", [50, 200])
@pytest.mark.parametrize("budget_rows", [64, 200])
def test_logits_and_temporaries_fit_the_budget_whatever_the_number_of_tokens(path, tokens, budget_rows):
    vocab = 2000
    policy, reference = Head(vocab, 8, 1), Head(vocab, 8, 2)
    hidden, ids = torch.randn(tokens, 8), torch.zeros(tokens, dtype=torch.int64)
    budget = budget_rows * vocab * 4
    with LiveBytes(hidden, ids) as memory:
        scores = chunked_scores(hidden, hidden, policy, reference, ids, temperature=0.7, chunk_bytes=budget)
    outputs = sum(x.nbytes for x in scores[:-1])
    assert budget / 2 < memory.peak <= budget + 2 * outputs  # the parts and their concatenation


def test_nothing_is_written_into_what_was_given(path):
    """A head may answer with its argument itself, as a table of logits does."""
    logits, other = torch.randn(2, 20, 30)
    before, other_before = logits.clone(), other.clone()
    ids = torch.arange(20)
    args = (logits, other, lambda h: h, lambda h: h, ids)
    scores = chunked_scores(*args, temperature=0.5, chunk_bytes=60 * 30 * 4)
    assert torch.equal(logits, before)
    assert torch.equal(other, other_before)
    torch.testing.assert_close(scores.policy_logprob, token_logprobs(logits, ids, temperature=0.5))


def test_forward_only_but_fit_for_use_as_a_constant(path):
    hidden = torch.randn(6, 4, requires_grad=True)
    head = Head(10, 4, 0)
    scores = chunked_scores(hidden, hidden, head, head, torch.arange(6))
    assert not any(x.requires_grad for x in scores[:-1])
    assert scores.kl.tolist() == [0] * 6  # one model against itself
    (token_logprobs(head(hidden), torch.arange(6)) * scores.policy_logprob).sum().backward()
    assert hidden.grad is not None
