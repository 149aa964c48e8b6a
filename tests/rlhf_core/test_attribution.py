"""Where the KL is: worked tables, and the law that shares sum to one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.attribution import (
    entropy_change,
    kl_by_class,
    kl_by_item,
    kl_by_position,
    rank_change,
    shares,
    token_class,
    top_tokens,
)
from rlhf_core.chunked import chunked_scores

KL = np.array([4.0, 0.0, 1.0, 3.0])


def test_top_tokens_are_in_order_and_the_earlier_one_comes_first_among_equals():
    assert top_tokens(np.array([1.0, 3.0, 1.0, 7.0]), 3) == [3, 1, 0]
    assert top_tokens(np.array([1.0, np.inf, 2.0]), 5) == [1, 2, 0]


def test_positions_double():
    kl = np.arange(1.0, 10.0)  # positions 0 … 8: 1 | 2 | 3 + 4 | 5 + 6 + 7 + 8 | 9; 45 in all
    found = kl_by_position(kl, np.arange(9))
    assert [(one.first, one.last) for one in found] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15)]
    assert [one.of.kl for one in found] == [1, 2, 7, 26, 9]
    assert [one.of.n_tokens for one in found] == [1, 1, 2, 4, 1]
    assert found[3].of.mean == 6.5
    assert found[3].of.share == pytest.approx(26 / 45)


def test_tokens_of_several_texts_meet_in_a_bucket_and_empty_buckets_are_left_out():
    found = kl_by_position(KL, np.array([0, 9, 0, 12]))
    assert [(one.first, one.last, one.of.kl) for one in found] == [(0, 0, 5), (8, 15, 3)]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        *(("", "special"), ("<|im_end|>", "special"), ("</s>", "special"), ("[SEP]", "special")),
        *((" ", "whitespace"), ("\n\n", "whitespace"), ("\t", "whitespace"), ("\u3000", "whitespace")),
        *(("�", "character_part"), (" ��", "character_part")),
        *(("7", "digits"), (" 1984", "digits"), ("½", "digits"), ("٣", "digits")),
        *((".", "punctuation"), (' "', "punctuation"), (" +", "punctuation"), (" 👩‍👩‍👧", "punctuation")),
        *((" the", "word_start"), (" 1st", "word_start"), (" don't", "word_start"), (" é", "word_start")),
        *(("ing", "word_continuation"), ("The", "word_continuation"), ("日本", "word_continuation")),
        *(("\u093f", "word_continuation"), ("s>", "word_continuation"), ("<b>", "word_continuation")),
    ],
)
def test_token_classes(piece, expected):
    assert token_class(piece) == expected


def test_classes_largest_first():
    found = kl_by_class(KL, [" a", ".", "b", " c"])
    assert list(found) == ["word_start", "word_continuation", "punctuation"]
    assert found["word_start"] == (2, 7.0, 3.5, 7 / 8)
    assert found["punctuation"] == (1, 0.0, 0.0, 0.0)


def test_items_add_up_over_tokens():
    # Two tokens with KL 1 and 3; their two largest terms: items 5, 7 and 7, 9.
    ids = np.array([[5, 7], [7, 9]])
    terms = np.array([[0.5, 0.25], [2.0, 0.5]])
    gains = np.array([[0.3, -0.1], [-0.4, 0.1]])
    found = kl_by_item(ids, terms, gains, total=4.0, count=2)
    assert found.coverage == 3.25 / 4
    assert [(item.id, item.n_tokens, item.kl, item.share) for item in found.items] == [
        (7, 2, 2.25, 2.25 / 4),
        (5, 1, 0.5, 0.5 / 4),
    ]
    assert [(item.id, item.gain) for item in found.gainers] == [(5, 0.3), (9, 0.1)]
    assert [(item.id, item.gain) for item in found.losers] == [(7, -0.5)]


def test_entropy_change_clusters_by_text():
    # Text 0: 1 − 2 and 3 − 2; text 1: 0 − 2. Σx = (0, −2), T = (2, 1): R = −2/3,
    # SE² = 2/1 · ((0 + 4/3)² + (−2 + 2/3)²) / 3² = 2 · 32/9 / 9
    entropy, reference = np.array([1.0, 3.0, 0.0]), np.full(3, 2.0)
    found = entropy_change(entropy, reference, np.array([0, 0, 1]), ["a", "b"])
    assert (found.policy, found.reference) == (pytest.approx(4 / 3), 2.0)
    assert found.change.mean == pytest.approx(-2 / 3)
    assert found.change.se == pytest.approx(8 / 9)
    assert entropy_change(entropy, reference, np.array([0, 0, 1]), ["a", "a"]).change.se is None


def test_ranks():
    found = rank_change(np.array([1.0, 1, 8, 5]), np.array([2.0, 1, 2, 5]))  # ratios ½, 1, 4, 1
    assert found == (0.25, 0.25, 0.5, 1.0)
    assert rank_change(np.array([1.0, 1]), np.array([4.0, 16])).median_ratio == pytest.approx(1 / 8)


def test_nothing_and_infinity_have_no_parts():
    for kl in (np.zeros(2), np.array([1.0, np.inf])):
        assert all(math.isnan(one.of.share) for one in kl_by_position(kl, np.array([0, 1])))
        found = kl_by_item(
            np.array([[1]]), np.array([[0.0]]), np.array([[0.0]]), total=float(kl.sum()), count=3
        )
        assert math.isnan(found.coverage)
        assert math.isnan(found.items[0].share)


TOKENS = st.lists(
    st.tuples(st.floats(1e-12, 1e3), st.integers(0, 5000), st.sampled_from(["", " a", "b", ".", "7", "\n"])),
    min_size=1,
    max_size=40,
)


@given(TOKENS)
def test_shares_sum_to_one_and_counts_to_the_tokens(tokens):
    kl = np.array([value for value, _, _ in tokens])
    groups = [
        [one.of for one in kl_by_position(kl, np.array([position for _, position, _ in tokens]))],
        list(kl_by_class(kl, [piece for _, _, piece in tokens]).values()),
    ]
    for group in groups:
        assert math.fsum(one.share for one in group) == pytest.approx(1)
        assert math.fsum(one.kl for one in group) == pytest.approx(kl.sum())
        assert sum(one.n_tokens for one in group) == len(tokens)
    every = top_tokens(kl, len(tokens))
    assert sorted(every) == list(range(len(tokens)))
    assert math.fsum(shares(kl, kl.sum())[every]) == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0, 5), st.floats(-1, 1)), min_size=1, max_size=30))
def test_items_share_out_the_coverage(terms):
    ids, kl, gain = (np.array(column)[:, None] for column in zip(*terms, strict=True))
    total = float(kl.sum()) + 1  # the rest of the vocabulary has 1 nat
    found = kl_by_item(ids, kl, gain, total=total, count=7)
    assert math.fsum(item.share for item in found.items) == pytest.approx(found.coverage)
    assert found.coverage == pytest.approx(1 - 1 / total)
    moved = [*found.gainers, *found.losers]
    assert math.fsum(item.gain for item in moved) == pytest.approx(gain.sum(), abs=1e-9)
    assert all(item.gain > 0 for item in found.gainers)
    assert all(item.gain < 0 for item in found.losers)


def test_all_terms_of_a_scored_text_are_all_its_kl_and_no_probability_is_lost():
    """On the arrays of the real kernel, where the top terms are the whole vocabulary."""
    torch.manual_seed(4)
    vocabulary, n = 11, 50
    policy, reference = torch.randn(n, vocabulary), torch.randn(n, vocabulary)
    scores = chunked_scores(
        policy, reference, torch.clone, torch.clone, torch.arange(n) % vocabulary, top_k=vocabulary
    )
    assert scores.top is not None
    kl = scores.kl.double().numpy()
    gains = scores.top.policy_logprob.double().exp() - scores.top.reference_logprob.double().exp()
    found = kl_by_item(
        scores.top.ids.long().numpy(),
        scores.top.kl_term.double().numpy(),
        gains.numpy(),
        total=kl.sum(),
        count=vocabulary,
    )
    assert found.coverage == pytest.approx(1, abs=1e-5)
    assert math.fsum(item.share for item in found.items) == pytest.approx(1, abs=1e-5)
    assert {item.n_tokens for item in found.items} == {n}
    moved = [*found.gainers, *found.losers]
    assert math.fsum(item.gain for item in moved) == pytest.approx(0, abs=1e-4)
    assert math.fsum(item.gain for item in found.gainers) < float(scores.tv.double().sum())
