"""Standard errors and intervals: worked numbers, coverage of simulated batches (T15b), T5 and T32, laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_core.statistics import (
    SequenceSums,
    effective_sample_size,
    ratio_estimate,
    sequence_kl,
    sequence_sums,
    summarise,
    t_interval,
)

LN2 = math.log(2)
BATCH = 64


def test_t15_the_interval_of_four_sequences():
    # mean 3, SE √(10/3)/2, and t = 3.18244630528… with 3 degrees of freedom
    found = ratio_estimate(np.array([1.0, 2, 4, 5]), np.ones(4), "abcd")
    assert found.mean == 3
    assert found.se == pytest.approx(0.9128709292, abs=5e-11)
    reach = 3.18244630528370844 * math.sqrt(10 / 3) / 2  # 2.9051627
    assert (found.low, found.high) == (pytest.approx(3 - reach, 1e-12), pytest.approx(3 + reach, 1e-12))


def test_a_ratio_of_two_clusters():
    # clusters Σx = (3, 4), ΣT = (2, 2): R = 7/4; SE² = 2/1 · ((3 − 3.5)² + (4 − 3.5)²) / 4² = 1/16
    found = ratio_estimate(np.array([1.0, 2, 4]), np.array([1.0, 1, 2]), ["p", "p", "q"])
    assert found[:2] == (1.75, 0.25)
    assert found.high == pytest.approx(1.75 + 12.7062047361746933 / 4)


def test_one_cluster_has_no_error():
    assert ratio_estimate(np.array([1.0, 2.0]), np.ones(2), ["p", "p"]) == (1.5, None, None, None)
    found = sequence_kl(SequenceSums(*np.ones((3, 2))), ["p", "p"])
    assert found.variance_ratio is None


def test_a_summary_has_means_per_sequence_and_per_token():
    found = summarise({"kl": np.array([1.0, 3.0, 5.0])}, np.array([1.0, 1.0, 2.0]), ["a", "b", "b"])
    assert (found.n_items, found.n_clusters, found.n_scored) == (3, 2, 4)
    assert found.sums["kl"].mean == 3  # 9 / 3
    assert found.means["kl"].mean == 2.25  # 9 / 4
    assert found.as_dict()["means"]["kl"] == found.means["kl"]._asdict()


def test_an_infinite_sum_leaves_nan_and_no_warning():
    found = ratio_estimate(np.array([1.0, np.inf]), np.ones(2), [0, 1])
    assert found.mean == np.inf
    assert np.isnan([found.se, found.low, found.high]).all()


# --- T15b: one style for the whole text, so that its tokens are not independent ---

STYLE, TOKENS = (
    0.8,
    8,
)  # style 0 with p = .8, ref .5; then 8 tokens (.9, .1) in style 0, else (.5, .5); ref .5
STEP_KL = STYLE * math.log(2 * STYLE) + (1 - STYLE) * math.log(2 * (1 - STYLE))
TOKEN_KL = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
TRUE_KL = STEP_KL + STYLE * TOKENS * TOKEN_KL
ONE_EACH, ALONE = np.ones(BATCH), list(range(BATCH))


def texts(batches, n, *, per_prompt=1, seed=15):
    """Per-token k1 and exact KL of sampled texts, [batches, n, 9] each; the texts of a prompt share the style."""
    rng = np.random.default_rng(seed)
    zero = (rng.random((batches, n // per_prompt)) < STYLE).repeat(per_prompt, axis=1)[..., None]
    first = np.where(zero, math.log(2 * STYLE), math.log(2 * (1 - STYLE)))
    likely = rng.random((batches, n, TOKENS)) < 0.9
    after = np.where(zero, np.where(likely, math.log(1.8), math.log(0.2)), 0.0)
    exact = np.where(zero, TOKEN_KL, np.zeros(TOKENS))
    return np.concatenate([first, after], -1), np.concatenate([np.full_like(first, STEP_KL), exact], -1)


def coverage(rows, weights, clusters, truth=TRUE_KL):
    """The share of batches (rows of totals) whose 95 % interval holds the truth."""
    found = [ratio_estimate(row, weights, clusters) for row in rows]
    return sum(one.low <= truth <= one.high for one in found) / len(found)


def test_t15b_the_truth():
    assert pytest.approx(2.5483556829, abs=5e-11) == TRUE_KL


def test_t15b_clustered_intervals_of_k1_cover():
    k1, _ = texts(20_000, BATCH)  # the share of 20,000 has an error of .0015
    assert 0.93 < coverage(k1.sum(-1), ONE_EACH, ALONE) < 0.96


def test_t15b_clustered_intervals_of_the_exact_kl_cover():
    # Σ KL_t depends on the style alone, so the coverage is a sum over k texts of style 0: Binomial(64, .8).
    covered = 0.0
    for k in range(BATCH + 1):
        sums = STEP_KL + TOKENS * TOKEN_KL * (np.arange(BATCH) < k)
        likely = math.comb(BATCH, k) * STYLE**k * (1 - STYLE) ** (BATCH - k)
        covered += likely * coverage([sums], ONE_EACH, ALONE)
    assert 0.93 < covered < 0.96


def test_t15b_intervals_per_token_do_not_cover():
    """The negative control: each token taken for independent, as most dashboards do."""
    for per_token, expected in zip(texts(3_000, BATCH), (0.86, 0.56), strict=True):
        rows = per_token.reshape(len(per_token), -1)
        tokens = rows.shape[1]
        found = coverage(rows, np.full(tokens, BATCH / tokens), list(range(tokens)))
        assert found == pytest.approx(expected, abs=0.03)  # 3,000 batches: an error of .006 to .009


def test_t15b_completions_of_one_prompt_are_not_independent_either():
    k1, _ = texts(6_000, 4 * BATCH, per_prompt=4)
    sums, weights = k1.sum(-1), np.ones(4 * BATCH)
    by_prompt = [text // 4 for text in range(4 * BATCH)]
    assert 0.93 < coverage(sums, weights, by_prompt) < 0.96  # an error of .003
    assert coverage(sums, weights, list(range(4 * BATCH))) < 0.8


def test_t15b_a_mean_per_token_covers_when_lengths_differ():
    # Texts of style 1 stop after 2 of the 8 tokens: R = E[Σk1] / E[T], T = 9 or 3.
    k1, _ = texts(20_000, BATCH)
    zero = k1[:, :, 0] > 0
    truth = TRUE_KL / (STYLE * 9 + (1 - STYLE) * 3)  # what they leave out has k1 = 0
    found = [
        ratio_estimate(row, np.where(style, 9.0, 3.0), ALONE)
        for row, style in zip(k1.sum(-1), zero, strict=True)
    ]
    assert 0.93 < sum(one.low <= truth <= one.high for one in found) / len(found) < 0.96


# --- sequence KL: samples that hold every sequence exactly as often as its probability says ---


def chain(p1, p2, q1, q2, n):
    """Sums of n two-token sequences in the exact proportions of p1(y) · p2(z | y)."""
    kl1 = kl(p1, q1)
    exact, k1 = [], []
    for y in (0, 1):
        for z in (0, 1):
            count = n * p1[y] * p2[y][z]
            assert count == pytest.approx(round(count), abs=1e-9)
            tokens = np.array([math.log(p1[y] / q1[y]), math.log(p2[y][z] / q2[y][z])])
            exact += [kl1 + kl(p2[y], q2[y])] * round(count)
            k1 += [tokens] * round(count)
    return sequence_sums(k1, np.array(exact))


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def variances(found, n):
    """Population variances from standard errors: SE² = Var · n/(n − 1) / n."""
    return [one.se**2 * (n - 1) for one in (found.rao_blackwell, found.k1, found.k3)]


def test_t5_rao_blackwell_has_a_1936th_of_the_variance():
    n = 100
    sums = chain((0.7, 0.3), ((0.9, 0.1), (0.2, 0.8)), (0.5, 0.5), ((0.6, 0.4), (0.5, 0.5)), n)
    found = sequence_kl(sums, range(n))
    for estimate in found[:3]:
        assert estimate.mean == pytest.approx(0.2985087184413303, abs=1e-12)
    assert variances(found, n) == pytest.approx([0.0002362977, 0.4574377543, 0.1622550769], abs=5e-11)
    assert found.variance_ratio == pytest.approx(0.4574377543 / 0.0002362977, rel=1e-6)


def test_t32_rao_blackwell_may_have_the_larger_variance():
    n = 3000
    sums = chain((1 / 3, 2 / 3), ((0.999, 0.001), (0.5, 0.5)), (0.5, 0.5), ((0.5, 0.5),) * 2, n)
    found = sequence_kl(sums, range(n))
    for estimate in found[:3]:
        assert estimate.mean == pytest.approx(0.2850463207, abs=5e-11)
    assert variances(found, n)[:2] == pytest.approx([0.1043452790, 0.0158990805], abs=5e-11)
    assert found.variance_ratio == pytest.approx(0.0158990805 / 0.1043452790, rel=1e-8)


def test_the_reference_s_own_sequences_estimate_the_other_direction():
    n, p1, p2, q1, q2 = 100, (0.7, 0.3), ((0.9, 0.1), (0.2, 0.8)), (0.5, 0.5), ((0.6, 0.4), (0.5, 0.5))
    ours = sequence_kl(chain(p1, p2, q1, q2, n), range(n))
    # The same texts, where the model that wrote them is the reference: every k1 changes its sign.
    turned = chain(p1, p2, q1, q2, n)
    tokens = [np.array([-d]) for d in turned.k1]
    swapped = sequence_kl(sequence_sums(tokens, turned.exact, reference_wrote=True), range(n))
    assert swapped.k1 == ours.k1
    assert swapped.rao_blackwell == ours.rao_blackwell
    # k3 of one token that stands for the pair: T5's variance of the sequence-level k3
    assert swapped.k3.mean == pytest.approx(0.2985087184413303, abs=1e-12)
    assert swapped.k3.se**2 * (n - 1) == pytest.approx(0.1680537470, abs=5e-11)


def test_what_is_not_known_or_does_not_vary_has_no_ratio():
    same, other = np.ones(3), np.array([1.0, 2, 3])
    assert math.isnan(sequence_kl(SequenceSums(same, same, same), range(3)).variance_ratio)
    assert sequence_kl(SequenceSums(same, other, same), range(3)).variance_ratio == math.inf
    found = sequence_kl(SequenceSums(None, other, same), range(3))
    assert (found.rao_blackwell, found.variance_ratio) == (None, None)


# --- effective sample size ---


def test_t25_effective_sample_size():
    found = effective_sample_size(np.log([1.0, 1, 1, 5]))  # 8² / 28
    assert found == (pytest.approx(2.2857142857), pytest.approx(2.2857142857 / 4))


def test_weights_of_zero_count_as_nothing_and_infinite_ones_are_unknown():
    assert effective_sample_size(np.array([0.0, 0.0, -np.inf, -np.inf])) == (2.0, 0.5)
    assert np.isnan(effective_sample_size(np.array([0.0, np.inf]))).all()
    assert np.isnan(effective_sample_size(np.array([-np.inf, -np.inf]))).all()


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=20), st.floats(-1e4, 1e4))
def test_effective_sample_size_is_between_1_and_n_whatever_the_scale(logs, shift):
    found = effective_sample_size(np.array(logs))
    assert 1 - 1e-12 <= found.size <= len(logs) + 1e-9
    assert found.share == found.size / len(logs)
    assert effective_sample_size(np.array(logs) + shift).size == pytest.approx(found.size, rel=1e-9)
    assert effective_sample_size(np.full(len(logs), shift)).size == pytest.approx(len(logs))


# --- laws ---

SAMPLES = st.lists(
    st.tuples(st.floats(-100, 100), st.floats(1, 50), st.integers(0, 4)), min_size=1, max_size=20
)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 8))
def test_equal_weights_give_the_mean_and_its_textbook_error(values, weight):
    n = len(values)
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    found = ratio_estimate(np.array(values), np.full(n, weight), list(range(n)))
    assert found.mean == pytest.approx(mean / weight, abs=1e-9)
    assert found.se == pytest.approx(deviation / math.sqrt(n) / weight, abs=1e-9)


@given(SAMPLES, st.randoms(), st.floats(-10, 10))
def test_order_and_labels_do_not_matter_and_a_factor_passes_through(samples, random, factor):
    totals, weights, clusters = (list(column) for column in zip(*samples, strict=True))
    found = ratio_estimate(np.array(totals), np.array(weights), clusters)
    shuffled = random.sample(samples, len(samples))
    again = ratio_estimate(
        np.array([x * factor for x, _, _ in shuffled]),
        np.array([t for _, t, _ in shuffled]),
        [f"cluster {c}" for _, _, c in shuffled],
    )
    assert again.mean == pytest.approx(found.mean * factor, abs=1e-8)
    if found.se is None:
        assert again.se is None
    else:
        assert again.se == pytest.approx(found.se * abs(factor), abs=1e-8)
        assert found.low <= found.mean <= found.high


@given(SAMPLES)
def test_copies_within_their_cluster_tell_nothing_new(samples):
    once, twice = (
        ratio_estimate(
            np.array([x for x, _, _ in sample]),
            np.array([t for _, t, _ in sample]),
            [c for _, _, c in sample],
        )
        for sample in (samples, samples * 2)
    )
    assert twice.mean == pytest.approx(once.mean, abs=1e-9)
    assert twice.se == (None if once.se is None else pytest.approx(once.se, abs=1e-9))


@given(st.floats(-10, 10), st.floats(0, 10), st.integers(2, 300))
def test_an_interval_is_centred_and_wider_at_a_higher_level(mean, se, n):
    low, high = t_interval(mean, se, n)
    assert (low + high) / 2 == pytest.approx(mean, abs=1e-9)
    assert high - low <= t_interval(mean, se, n, level=0.99).high * 2 - 2 * mean + 1e-9
