"""Scores against a float64 computation of full logits that shares no code with rlhf_core."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_core.attribution import kl_of_others
from rlhf_core.causal_lm import split
from rlhf_core.errors import TokenizerMismatch
from rlhf_core.models import WeightSource, load_pair
from rlhf_core.scoring import capacity, score_batch, score_texts
from rlhf_core.tokenization import tokenize
from tests import tiny_models

TEXTS = [
    ("the cat sat on the mat", None),
    (" sat on the log and 日本語 👩‍👩‍👧", "the dog"),
    ("reinforcement learning from human feedback keeps the policy near its reference", None),
    ("x!", "a prompt that is longer than its completion"),
    ("<|end|>", "ends at once"),
    ("before<|end|>after", None),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_models.build(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", params=["packed", "padded"])
def pair(tiny, request):
    pair = load_pair(WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base)))
    assert pair.packs
    if request.param == "padded":
        for body in (pair._policy[0], pair._reference[0]):
            body.causal_lm = replace(body.causal_lm, packs=False)
    assert (capacity(pair).packed_tokens > 0) is (request.param == "packed")
    return pair


@pytest.fixture(scope="module")
def texts(pair):
    limit = capacity(pair).context
    return [tokenize(pair.tokenizer, text, prompt, context=limit) for text, prompt in TEXTS]


def in_float64(tiny, text, prompt, temperature):
    """Both log-softmaxes over the whole vocabulary that predict the scored tokens, and these tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    lead = [] if prompt is None else tokenizer(prompt)["input_ids"]
    ids = lead + tokenizer(text)["input_ids"]
    reference = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float64)
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float64), tiny.adapter
    ).double()
    first = max(len(lead), 1)
    with torch.no_grad():
        lp, lq = (
            torch.log_softmax(m(input_ids=torch.tensor([ids])).logits[0, first - 1 : -1] / temperature, -1)
            for m in (policy.eval(), reference.eval())
        )
    return lp, lq, torch.tensor(ids[first:])[:, None]


def all_terms(tiny, text, prompt):
    """Of each scored token the term of every vocabulary item, [tokens, vocab]."""
    lp, lq, _ = in_float64(tiny, text, prompt, 1.0)
    return lp.exp() * (lp - lq) - lp.exp() + lq.exp()


def naive(tiny, text, prompt, temperature):
    """All quantities of the scored tokens, from log-softmaxes over the whole vocabulary in float64."""
    lp, lq, token = in_float64(tiny, text, prompt, temperature)
    ours, theirs = lp.gather(-1, token)[:, 0], lq.gather(-1, token)[:, 0]
    d = ours - theirs
    return {
        "policy_logprob": ours,
        "reference_logprob": theirs,
        "k1": d,
        "k2": d**2 / 2,
        "k3": torch.exp(-d) - 1 + d,
        "kl": (lp.exp() * (lp - lq)).sum(-1),
        "kl_ref": (lq.exp() * (lq - lp)).sum(-1),
        "js": sum((p.exp() * (p - torch.logaddexp(lp, lq) + math.log(2))).sum(-1) for p in (lp, lq)) / 2,
        "tv": (lp.exp() - lq.exp()).abs().sum(-1) / 2,
        "entropy": -(lp.exp() * lp).sum(-1),
        "cross_entropy": -(lp.exp() * lq).sum(-1),
        "entropy_ref": -(lq.exp() * lq).sum(-1),
        "policy_rank": 1.0 + (lp > ours[:, None]).sum(-1),
        "reference_rank": 1.0 + (lq > theirs[:, None]).sum(-1),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_full_logits_in_float64(tiny, pair, texts, temperature):
    scores = score_texts(pair, texts, temperature=temperature)
    for (text, prompt), tokens, score in zip(TEXTS, texts, scores, strict=True):
        expected = naive(tiny, text, prompt, temperature)
        assert score.scored.tolist() == [t >= tokens.first_scored for t in range(len(tokens.ids))]
        assert expected["kl"].max() > 0.01  # the adapter does something
        assert list(expected) == list(score.quantities)
        for name, values in expected.items():
            ours = score.quantities[name]
            assert np.isnan(ours[~score.scored]).all()
            # fp32 log-probabilities; k2 and k3 multiply their error by d and by e^{−d}
            tolerance = 1e-5 * max(1.0, float(values.abs().max()))
            np.testing.assert_allclose(ours[score.scored], values.numpy(), rtol=1e-5, atol=tolerance)


def test_batching_and_padding_change_nothing(pair, texts):
    """T7, T22: alone, packed behind others or padded beside longer ones, in any order, in any chunks."""
    alone = [score_batch(pair, [text])[0] for text in texts]
    together = score_batch(pair, texts)
    reversed_ = score_batch(pair, texts[::-1])[::-1]
    chunked = score_texts(pair, texts, max_batch_tokens=40, chunk_bytes=1)
    for one, *others in zip(alone, together, reversed_, chunked, strict=True):
        for other in others:
            assert one.ids.tolist() == other.ids.tolist()
            for name, values in one.quantities.items():
                scale = max(1.0, np.nanmax(np.abs(values)))
                np.testing.assert_allclose(values, other.quantities[name], atol=1e-5 * scale)


def test_an_adapter_that_does_nothing_is_its_base_to_the_bit(tiny, texts):
    """T16: B = 0, adapter on against off."""
    same = load_pair(WeightSource(str(tiny.null_adapter), str(tiny.base)), WeightSource(str(tiny.base)))
    for score in score_batch(same, texts):
        for name in ("k1", "k2", "k3", "kl", "kl_ref"):
            assert (score.quantities[name][score.scored] == 0.0).all()


def test_swapping_policy_and_reference_swaps_the_directions(tiny, pair, texts):
    base, adapter = WeightSource(str(tiny.base)), WeightSource(str(tiny.adapter), str(tiny.base))
    swapped = score_batch(load_pair(base, adapter), texts)
    for score, other in zip(score_batch(pair, texts), swapped, strict=True):
        for ours, theirs in (("kl", "kl_ref"), ("policy_logprob", "reference_logprob")):
            np.testing.assert_allclose(score.quantities[ours], other.quantities[theirs], rtol=1e-5, atol=1e-7)


def test_the_end_token_counts_and_so_does_what_the_caller_puts_after_it(pair, texts):
    """T20: masks come from lengths, not from ids."""
    scores = score_texts(pair, texts)
    assert scores[4].scored.tolist()[-1] is True
    assert scores[4].scored.sum() == 1  # the completion is the end token alone
    assert scores[5].scored.tolist() == [False] + [True] * (len(scores[5].ids) - 1)


def test_other_tokenizers_and_vocabularies_are_refused(tiny):
    with pytest.raises(TokenizerMismatch):
        load_pair(WeightSource(str(tiny.base)), WeightSource(str(tiny.foreign)))


PROMPT = (
    "the same long prompt is read once for all of its completions, whatever their number may be, and kept"
)


@pytest.fixture
def completions(pair):
    answers = (" yes", " no, not at all", " perhaps 日本語", " x", " yes")
    return [tokenize(pair.tokenizer, text, PROMPT, context=capacity(pair).context) for text in answers]


@pytest.mark.parametrize("branches", [True, False])
def test_a_shared_prompt_is_run_once_and_changes_nothing(pair, completions, branches, monkeypatch):
    """In one row with its completions, or before them, whose rows then go on from its keys and values."""
    body = pair._policy[0]  # also the reference's, with the adapter off
    assert body.causal_lm.branches
    model = replace(body.causal_lm, branches=branches, context=128)  # as long as the row
    monkeypatch.setattr(body, "causal_lm", model)
    seen = []
    trunk = body.causal_lm.trunk
    forward = trunk.forward
    monkeypatch.setattr(trunk, "forward", lambda **inputs: (seen.append(inputs), forward(**inputs))[1])
    alone = [score_batch(pair, [text])[0] for text in completions]
    seen.clear()
    shared = score_texts(pair, completions, max_batch_tokens=4 * len(completions[1].ids))
    prompt = completions[0].first_scored
    after = [len(text.ids) - 1 - prompt for text in completions]
    passes = [(1, prompt + sum(after))] if branches else [(1, prompt), (5, max(after))]
    assert [tuple(inputs["input_ids"].shape) for inputs in seen] == passes * 2  # both models
    without = score_texts(pair, completions, reuse_prefixes=False)
    for one, *others in zip(alone, shared, without, strict=True):
        for other in others:
            assert one.ids.tolist() == other.ids.tolist()
            for name, values in one.quantities.items():
                scale = max(1.0, np.nanmax(np.abs(values)))
                np.testing.assert_allclose(values, other.quantities[name], atol=1e-5 * scale)


def test_strict_is_the_same_to_the_bit_in_any_company(pair, texts, completions):
    alone = [score_texts(pair, [text], strict=True)[0] for text in [*texts, *completions]]
    together = score_texts(pair, [*completions, *texts], strict=True, max_batch_tokens=10_000)
    for one, other in zip(alone, together[len(completions) :] + together[: len(completions)], strict=True):
        for name, values in one.quantities.items():
            assert values.tobytes() == other.quantities[name].tobytes(), name


def test_top_terms_are_the_largest_parts_of_the_kl(tiny, pair, texts):
    """Asked for whole, they sum to it; each is p ln(p/q) − p + q of its item."""
    vocab = capacity(pair).vocab_size
    for score in score_texts(pair, texts, top_k=10**6):
        assert score.top is not None
        ids, log_p, log_q, terms = (x.astype(np.float64) for x in score.top)
        assert terms.shape == (len(score.ids), vocab)
        assert not terms[~score.scored].any()
        kl = score.quantities["kl"][score.scored]
        np.testing.assert_allclose(terms[score.scored].sum(1), kl, rtol=1e-5, atol=1e-7)
        ids, log_p, log_q, terms = (x[score.scored] for x in (ids, log_p, log_q, terms))
        assert (np.sort(ids, axis=1) == np.arange(vocab)).all()
        assert (np.diff(terms, axis=1) <= 0).all()
        p, q = np.exp(log_p), np.exp(log_q)
        np.testing.assert_allclose(terms, p * (log_p - log_q) - p + q, rtol=1e-3, atol=1e-7)
    few = score_texts(pair, texts[:1], top_k=3)[0].top
    assert few is not None
    assert few.ids.shape == (len(texts[0].ids), 3)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_what_the_top_terms_leave_is_the_sum_of_all_the_others(tiny, pair, texts, k):
    """The others' terms p ln(p/q) − p + q, summed in float64 from log-softmaxes of the whole vocabulary."""
    some = score_texts(pair, texts, top_k=k)
    for score, (text, prompt) in zip(some, TEXTS, strict=True):
        assert score.top is not None
        kl = score.quantities["kl"]
        rest = kl_of_others(kl, score.top.kl_term)
        assert np.isnan(rest[~score.scored]).all()
        terms = all_terms(tiny, text, prompt)
        listed = torch.from_numpy(score.top.ids[score.scored]).long()
        others = terms.scatter(1, listed, 0.0).sum(1).numpy()
        assert others.min() > 0
        np.testing.assert_allclose(rest[score.scored], others, rtol=1e-4, atol=2e-6)
        whole = score.top.kl_term[score.scored].sum(1) + rest[score.scored]
        np.testing.assert_allclose(whole, kl[score.scored], rtol=1e-6)


def test_an_infinite_kl_leaves_no_number():
    kl = np.array([np.inf, 0.5, 0.5], np.float32)
    terms = np.array([[np.inf, 1.0], [0.25, 0.125], [0.5, 1e-8]], np.float32)
    rest = kl_of_others(kl, terms)
    assert np.isnan(rest[0])
    assert rest[1:].tolist() == [0.125, 0.0]


def test_one_model_is_run_once_and_is_at_zero_from_itself(tiny, texts):
    base = WeightSource(str(tiny.base))
    pair = load_pair(base, base)
    assert pair.same
    calls = []
    trunk = pair._policy[0].causal_lm.trunk
    trunk.register_forward_hook(lambda *_: calls.append(1))
    for score in score_batch(pair, texts):
        for name in ("k1", "k2", "k3", "kl", "kl_ref", "js", "tv"):
            assert (score.quantities[name][score.scored] == 0.0).all()
    assert len(calls) == 1


def test_a_model_without_a_linear_head_is_run_as_a_whole_and_says_so(tiny, texts, caplog, monkeypatch):
    plain = load_pair(WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base)))
    expected = score_texts(plain, texts, temperature=2.0)
    forward = LlamaForCausalLM.forward

    def halved(self, *args, **inputs):
        output = forward(self, *args, **inputs)
        output.logits = output.logits / 2
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", halved)
    pair = load_pair(WeightSource(str(tiny.adapter), str(tiny.base)), WeightSource(str(tiny.base)))
    assert not pair.splits
    assert "not one linear layer" in caplog.text
    for ours, theirs in zip(score_texts(pair, texts), expected, strict=True):
        for name, values in theirs.quantities.items():
            np.testing.assert_allclose(ours.quantities[name], values, rtol=1e-4, atol=2e-5)


def test_models_that_would_mix_packed_texts_are_padded():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32}
    bloom = BloomConfig(**sizes, n_layer=2, n_head=4)  # ALiBi: no positions to tell texts apart by
    llama = LlamaConfig(
        **sizes, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64
    )
    for config, packs in ((bloom, False), (llama, True)):
        model = AutoModelForCausalLM.from_config(config).eval()
        assert split(model).packs is packs, config.model_type
