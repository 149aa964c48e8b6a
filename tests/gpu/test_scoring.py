"""Scores on a CUDA device are the CPU's, and take the memory of one chunk of logits."""

import numpy as np
import pytest
import torch

from rlhf_core.chunked import CHUNK_BYTES, chunked_scores
from rlhf_core.models import ModelPair, WeightSource, load_pair
from rlhf_core.scoring import ScoredText, capacity, score_texts
from rlhf_core.tokenization import tokenize
from tests import tiny_models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TEXTS = [
    ("the cat sat on the mat", None),
    ("reinforcement learning from human feedback keeps the policy near its reference", "the dog"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tiny_models.TinyModels:
    return tiny_models.build(tmp_path_factory.mktemp("models"))


def load(tiny: tiny_models.TinyModels, device: str, dtype: torch.dtype = torch.float32) -> ModelPair:
    policy, reference = WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base))
    return load_pair(policy, reference, device=device, dtype=dtype)


def score(pair: ModelPair, top_k: int = 0) -> list[ScoredText]:
    limit = capacity(pair).context
    texts = [tokenize(pair.tokenizer, text, prompt, context=limit) for text, prompt in TEXTS]
    return score_texts(pair, texts, top_k=top_k)


def test_in_float32_they_are_the_cpus(tiny: tiny_models.TinyModels) -> None:
    """Within 1e-4 of the largest value: both round in float32, in other orders. Near ties may swap their ranks."""
    for here, there in zip(score(load(tiny, "cpu")), score(load(tiny, "cuda")), strict=True):
        assert there.scored.tolist() == here.scored.tolist()
        for name, values in here.quantities.items():
            atol = 1.0 if name.endswith("rank") else 1e-4 * max(1.0, float(np.nanmax(np.abs(values))))
            np.testing.assert_allclose(there.quantities[name], values, rtol=0, atol=atol)


def test_the_largest_terms_come_with_them(tiny: tiny_models.TinyModels) -> None:
    for here, there in zip(score(load(tiny, "cpu"), 5), score(load(tiny, "cuda"), 5), strict=True):
        np.testing.assert_allclose(there.top.kl_term, here.top.kl_term, rtol=1e-3, atol=1e-4)


def test_in_bfloat16_they_are_near(tiny: tiny_models.TinyModels) -> None:
    """Weights and activations of 8 bits move these log-probabilities by 0.09 on a CPU."""
    for here, there in zip(score(load(tiny, "cpu")), score(load(tiny, "cuda", torch.bfloat16)), strict=True):
        for name in ("policy_logprob", "reference_logprob", "kl", "kl_ref", "entropy", "cross_entropy"):
            np.testing.assert_allclose(there.quantities[name], here.quantities[name], rtol=0, atol=0.3)


def test_the_head_of_a_bfloat16_model_answers_in_float32(tiny: tiny_models.TinyModels) -> None:
    with load(tiny, "cuda", torch.bfloat16).policy() as policy, torch.inference_mode():
        weight = policy.head.weight
        hidden = torch.randn(7, weight.shape[1], device="cuda").bfloat16()
        exact = hidden.double() @ weight.double().T
        torch.testing.assert_close(policy.logits(hidden).double(), exact, rtol=1e-5, atol=1e-5)


def test_memory_is_one_chunks_at_the_largest_shape() -> None:
    """4 × 4096 tokens over 151,936 items: 10 GB of logits a model."""
    tokens, vocab = 4 * 4096, 151_936
    heads = [torch.nn.Linear(8, vocab, bias=False, device="cuda") for _ in range(2)]
    hidden, ids = torch.randn(tokens, 8, device="cuda"), torch.randint(vocab, (tokens,), device="cuda")
    chunked_scores(hidden[:2], hidden[:2], *heads, ids[:2])  # cuBLAS keeps its workspace
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scores = chunked_scores(hidden, hidden, *heads, ids)
    kept = torch.cuda.memory_allocated() - before
    # The allocator may give each of the two tensors a MiB more; the scores exist in parts and as a whole.
    assert torch.cuda.max_memory_allocated() - before <= CHUNK_BYTES + 2 * 2**20 + 2 * kept
    assert float(scores.kl.min()) >= 0
