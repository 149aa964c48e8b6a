"""Heads of different size behind one tokenizer: the distributions over the ids that both have, by float64 sums."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs.scoring_wire import ScoreItem
from rlhf_core.errors import TokenIdOutOfRange, TokenizerMismatch
from rlhf_core.kernels import scores as native
from rlhf_core.models import WeightSource, load_pair
from rlhf_core.scoring import capacity, score_batch, score_texts
from rlhf_core.tokenization import tokenize, tokenize_item
from tests import tiny_models

PADDING = 47  # 50304 − 50257: GPT-2's vocabulary, padded to a multiple of 128
TEXTS = ["the cat sat on the mat", " 日本語 and the dog", "reinforcement learning from human feedback"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models of one tokenizer; the second has rows beyond it, which its softmax does not ignore."""
    torch.set_num_threads(1)
    tiny = tiny_models.build(tmp_path_factory.mktemp("models"))
    padded = tiny_models.save_padded(tiny, tiny.root / "padded", rows=PADDING)
    return WeightSource(str(tiny.base)), WeightSource(str(padded))


@pytest.fixture(params=["reference is padded", "policy is padded"])
def sources(models, request):
    return models if request.param == "reference is padded" else models[::-1]


def full_logprobs(source, ids, temperature):
    """ln of the model's own distribution, over all of its head, at the positions that predict ids[1:]."""
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float64).eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids.tolist()])).logits[0, :-1]
    return (logits / temperature).log_softmax(-1)


def enumerated(sources, ids, temperature):
    """Every quantity of the two conditional distributions, and ln of what each model gives the shared ids."""
    full = [full_logprobs(source, ids, temperature) for source in sources]
    shared = min(x.shape[-1] for x in full)
    kept = [x[:, :shared].exp().sum(-1).log() for x in full]
    log_p, log_q = (x[:, :shared] - mass[:, None] for x, mass in zip(full, kept, strict=True))
    p, q = log_p.exp(), log_q.exp()
    own = torch.tensor(ids[1:].tolist())[:, None]
    ours, theirs = log_p.gather(1, own)[:, 0], log_q.gather(1, own)[:, 0]
    terms = p * (log_p - log_q) - p + q
    return {
        "policy_logprob": ours,
        "reference_logprob": theirs,
        "k1": ours - theirs,
        "kl": (p * (log_p - log_q)).sum(-1),
        "kl_ref": (q * (log_q - log_p)).sum(-1),
        "tv": (p - q).abs().sum(-1) / 2,
        "entropy": -(p * log_p).sum(-1),
        "cross_entropy": -(p * log_q).sum(-1),
        "policy_rank": 1.0 + (log_p > ours[:, None]).sum(-1),
    }, (terms, kept, full)


@pytest.mark.parametrize(
    ("kernel", "chunk_bytes", "temperature"), [(True, 2**20, 1.0), (True, 1, 0.7), (False, 2**20, 0.7)]
)
def test_intersect_is_the_two_conditional_distributions(
    sources, kernel, chunk_bytes, temperature, monkeypatch
):
    if not kernel:
        monkeypatch.setattr(native, "fits", lambda *_: False)
    pair = load_pair(*sources)
    texts = [tokenize(pair.tokenizer, text, context=tiny_models.CONTEXT) for text in TEXTS]
    found = score_texts(
        pair,
        texts,
        vocab_mismatch="intersect",
        temperature=temperature,
        chunk_bytes=chunk_bytes,
        top_k=10**6,
    )
    for score in found:
        expected, (terms, _, _) = enumerated(sources, score.ids, temperature)
        for name, values in expected.items():
            bound = 1e-5 * max(1.0, float(values.abs().max()))
            np.testing.assert_allclose(
                score.quantities[name][1:], values, rtol=1e-5, atol=bound, err_msg=name
            )
        assert (
            np.sort(score.top.ids[1:], axis=1) == np.arange(terms.shape[1])
        ).all()  # no id beyond the shared
        largest = terms.sort(descending=True).values
        np.testing.assert_allclose(score.top.kl_term[1:], largest, rtol=1e-3, atol=1e-6)


def test_where_the_policy_is_the_smaller_one_the_whole_kl_is_known_too(models):
    """docs/adr/0006: π has nothing outside the shared ids S, so KL(π ‖ ref) = KL(π ‖ ref|S) − ln ref(S)."""
    pair = load_pair(*models)
    (score,) = score_batch(pair, [tokenize(pair.tokenizer, TEXTS[0], context=tiny_models.CONTEXT)])
    _, (_, (nothing, log_mass), (policy, reference)) = enumerated(models, score.ids, 1.0)
    shared = policy.shape[-1]
    whole = (policy.exp() * (policy - reference[:, :shared])).sum(-1)
    assert nothing.abs().max() < 1e-12
    assert log_mass.max() < -0.01  # the padding takes what renormalising gives back
    np.testing.assert_allclose(score.quantities["kl"][1:], whole + log_mass, rtol=1e-5)


def test_without_it_such_a_pair_is_refused_with_both_sizes(sources):
    pair = load_pair(*sources)
    text = tokenize(pair.tokenizer, TEXTS[0], context=tiny_models.CONTEXT)
    for refused in (lambda: capacity(pair), lambda: score_texts(pair, [text])):
        with pytest.raises(TokenizerMismatch) as error:
            refused()
        assert all(str(size) in str(error.value) for size in pair.vocab_sizes)


def test_an_id_that_only_one_model_has_cannot_be_scored(sources):
    pair = load_pair(*sources)
    room = capacity(pair, "intersect")
    assert room.vocab_size == min(pair.vocab_sizes) == max(pair.vocab_sizes) - PADDING
    last = ScoreItem(token_ids=[1, room.vocab_size - 1])
    assert tokenize_item(pair.tokenizer, last, context=room.context, vocab_size=room.vocab_size)
    beyond = ScoreItem(token_ids=[1, room.vocab_size])
    with pytest.raises(TokenIdOutOfRange):
        tokenize_item(pair.tokenizer, beyond, context=room.context, vocab_size=room.vocab_size)


def test_a_cut_head_keeps_to_the_budget_of_bytes(sources):
    """At once there are the policy's chunk, the reference's and, while one of them is cut, a whole head's."""
    pair, chunk_bytes = load_pair(*sources), 30_000
    text = tokenize(pair.tokenizer, " ".join(TEXTS), context=tiny_models.CONTEXT)
    rows = []
    for body in (pair._policy[0], pair._reference[0]):
        body.causal_lm.head.register_forward_hook(lambda *call: rows.append(call[-1].shape[0]))
    score_batch(pair, [text], chunk_bytes=chunk_bytes)
    row_bytes = 4 * (2 * min(pair.vocab_sizes) + max(pair.vocab_sizes))
    assert max(rows) == chunk_bytes // row_bytes < len(text.ids) - 1
