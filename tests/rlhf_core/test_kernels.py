"""The C kernel against float64, and life without it."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.chunked import chunked_scores
from rlhf_core.kernels import build
from rlhf_core.kernels import scores as native
from rlhf_core.kl import divergences, kl_terms
from tests.rlhf_core import kernel_oracles as oracles

INF = math.inf


def run(
    policy: torch.Tensor,
    reference: torch.Tensor,
    ids: torch.Tensor,
    temperature: float,
) -> dict[str, torch.Tensor]:
    found = native.scores(policy, reference, ids, temperature=temperature)
    return dict(zip(native.OUTPUTS, found.double().unbind(1), strict=True))


def test_it_is_compiled_here():
    assert build.status() == "native"
    assert native.fits(torch.zeros(1, 2))
    for other in (torch.zeros(1, 2).double(), torch.zeros(1, 2).bfloat16()):
        assert not native.fits(torch.zeros(1, 2), other)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("vocab", [7, 4096, 50257])
def test_t18_it_holds_the_bound_down_to_a_kl_of_1e_8(vocab: int, temperature: float) -> None:
    oracles.assert_t18(run, vocab=vocab, temperature=temperature, rows=8)


@settings(max_examples=200)
@given(
    vocab=st.integers(1, 600),
    scale=st.floats(0, 40),
    noise=st.floats(0, 40),
    temperature=st.floats(0.5, 5),
    excluded=st.floats(0, 0.9),
    seed=st.integers(0, 2**16),
)
def test_it_says_what_float64_says(
    vocab: int, scale: float, noise: float, temperature: float, excluded: float, seed: int
) -> None:
    logits = oracles.pair(vocab=vocab, scale=scale, noise=noise, excluded=excluded, seed=seed)
    oracles.assert_float64(run, *logits, temperature)


def test_without_mass_or_with_nan_there_is_no_number_and_the_neighbours_have_theirs() -> None:
    oracles.assert_no_number_without_mass(run)


def test_equal_logits_are_at_exactly_zero() -> None:
    oracles.assert_zero_of_equals(run, vocab=5000)


def test_a_row_does_not_depend_on_its_neighbours_the_threads_or_the_level() -> None:
    generator = torch.Generator().manual_seed(1)
    policy, reference = (torch.randn(9, 3001, generator=generator) * 5 for _ in range(2))
    ids = torch.randint(3001, (9,), generator=generator)
    everything = native.scores(policy, reference, ids, temperature=1.0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [
            native.scores(policy[i : i + 1], reference[i : i + 1], ids[i : i + 1], temperature=1.0)
            for i in range(9)
        ]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(everything, torch.cat(alone))
    for level, columns in ((native.LOGPROBS_ONLY, 2), (native.WITHOUT_JS, 10)):
        found = native.scores(policy, reference, ids, temperature=1.0, level=level)
        assert torch.equal(found[:, :columns], everything[:, :columns])
        assert found[:, columns:].count_nonzero() == 0


def test_logits_may_be_a_part_of_a_wider_tensor() -> None:
    policy, reference = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(5)
    part = chunked_scores(policy, reference, lambda h: h[:, :30], lambda h: h[:, 10:], ids)
    whole = native.scores(policy[:, :30].clone(), reference[:, 10:].clone(), ids, temperature=1.0)
    assert torch.equal(torch.stack(part[:-1], 1), whole)


@settings(max_examples=100)
@given(
    vocab=st.integers(1, 700),
    k=st.integers(1, 20),
    scale=st.sampled_from([0.0, 0.01, 1.0, 20.0]),
    excluded=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**16),
)
def test_the_largest_terms_of_the_kl(vocab: int, k: int, scale: float, excluded: float, seed: int) -> None:
    """Against kl_terms in float64: the terms in order, each that of its item; no item twice."""
    k = min(k, vocab)
    generator = torch.Generator().manual_seed(seed)
    policy = torch.randn(3, vocab, generator=generator)
    reference = policy + scale * torch.randn(3, vocab, generator=generator)
    policy[:, 1:][torch.rand(3, vocab - 1, generator=generator) < excluded] = -INF
    top = native.top_terms(policy, reference, k=k, temperature=0.7)
    log_p, log_q = ((x.double() / 0.7).log_softmax(-1) for x in (policy, reference))
    terms = kl_terms(log_p, log_q)
    expected = terms.sort(dim=-1, descending=True).values[:, :k]
    torch.testing.assert_close(top.kl_term.double(), expected, rtol=2e-5, atol=1e-9)
    of_items = terms.gather(1, top.ids.long())
    torch.testing.assert_close(of_items, expected, rtol=2e-5, atol=1e-9)
    for found, exact in ((top.policy_logprob, log_p), (top.reference_logprob, log_q)):
        exact = exact.gather(1, top.ids.long())
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == k for row in top.ids.tolist())
    if scale == 0:  # all terms are 0 or an excluded item's: of equal ones the first
        zero = [[i for i in row if terms[n, i] == 0] for n, row in enumerate(top.ids.tolist())]
        assert all(row == sorted(row) for row in zero)


def test_what_it_cannot_read_is_refused() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(IndexError, match="vocabulary of 3"):
        native.scores(logits, logits, torch.tensor([0, 3]), temperature=1.0)
    with pytest.raises(ValueError, match="shape"):
        native.scores(logits, logits[:1], torch.tensor([0, 0]), temperature=1.0)


SCORE = """
import torch
from rlhf_core.kernels.build import status
from rlhf_core.chunked import chunked_scores
x, y = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
scores = chunked_scores(x, y, lambda h: h, lambda h: h, torch.arange(6))
print(status(), scores.kl.sum().item(), sep="|")
"""


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("gcc", "native"),
        ("false", "torch: the C compiler made no kernel: no message"),
        ("no-such-compiler", "torch: the C compiler made no kernel: .*'no-such-compiler'"),
    ],
)
def test_without_a_compiler_scores_are_the_same_and_the_reason_is_told(
    tmp_path: Path, compiler: str, said: str
) -> None:
    x, y = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0)).double()
    done = subprocess.run(
        [sys.executable, "-c", SCORE],
        env=os.environ | {"CC": compiler, build.CACHE: str(tmp_path / "kernels")},
        capture_output=True,
        text=True,
        check=True,
    )
    status, kl = done.stdout.strip().split("|")
    assert re.fullmatch(said, status)
    assert float(kl) == pytest.approx(divergences(x, y).kl.sum().item(), rel=1e-6)
    made = list((tmp_path / "kernels").iterdir())
    assert [path.suffix for path in made] == ([".so"] if compiler == "gcc" else [])


def test_processes_that_compile_at_once_leave_one_whole_kernel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlhf_core.kernels.build"]
    env = os.environ | {build.CACHE: str(tmp_path)}
    running = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert told == {str(path) for path in tmp_path.iterdir()}
