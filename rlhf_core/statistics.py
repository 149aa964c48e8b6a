"""What several sequences say together: means with errors and intervals, sequence KL, effective sample size.

numpy in float64, without torch: the API computes these from arrays of the scorer or of a client. A cluster is a
set of sequences that are not independent (completions of one prompt); clusters are independent of each other. An
infinite entry leaves NaN or ±∞ in what depends on it; None stands for what one cluster cannot tell.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlhf_core.student_t import t_quantile

Array = npt.NDArray[np.float64]
LEVEL = 0.95


class Interval(NamedTuple):
    """Confidence limits."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A mean, its standard error and the limits of its confidence interval; None for a single cluster."""

    mean: float
    se: float | None
    low: float | None
    high: float | None


class SequenceKL(NamedTuple):
    """Estimates of one sequence KL from the same sequences, nats per sequence."""

    rao_blackwell: Estimate | None  # of Σ_t KL_t, exact at each sampled prefix
    k1: Estimate  # of Σ_t k1_t
    k3: Estimate  # of Σ_t k3_t
    variance_ratio: float | None  # SE² of k1 / SE² of rao_blackwell; below 1 the plain k1 is the better one


class EffectiveSampleSize(NamedTuple):
    """How many equally weighted sequences the weighted ones are worth: between 1 and their number."""

    size: float
    share: float  # size / number of sequences


def ratio_estimate(
    totals: Array, weights: Array, clusters: Sequence[Hashable], *, level: float = LEVEL
) -> Estimate:
    """R = Σx/ΣT over clusters, and its standard error: SE² = n/(n−1) · Σ(x_i − R·T_i)² / (ΣT)².

    With weights T of 1 this is the mean of the totals, and sd/√n where every cluster has one; with numbers of
    tokens as weights it is a mean per token.

    Args:
        totals: x of each sequence.
        weights: T of each sequence.
        clusters: a label for each sequence; equal labels are one cluster.
        level: of the confidence interval.
    """
    labels = {cluster: label for label, cluster in enumerate(dict.fromkeys(clusters))}
    members = [labels[cluster] for cluster in clusters]
    with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞ is NaN
        x, t = np.bincount(members, totals), np.bincount(members, weights)
        n, mean = len(x), float(x.sum() / t.sum())
        if n < 2:
            return Estimate(mean, None, None, None)
        variance = n / (n - 1) * np.square(x - mean * t).sum() / t.sum() ** 2
        se = float(np.sqrt(variance))
    return Estimate(mean, se, *t_interval(mean, se, n, level=level))


def t_interval(mean: float, se: float, n: int, *, level: float = LEVEL) -> Interval:
    """mean ± t·se, with the quantile of Student's t for n − 1 degrees of freedom, n independent clusters."""
    reach = t_quantile(level, n - 1) * se
    return Interval(mean - reach, mean + reach)


class Summary(NamedTuple):
    """What several sequences say of each quantity: its mean per sequence, and per scored token."""

    n_items: int
    n_clusters: int
    n_scored: int
    sums: dict[str, Estimate]
    means: dict[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the estimates are dicts too."""
        named = {
            kind: {name: x._asdict() for name, x in getattr(self, kind).items()} for kind in ("sums", "means")
        }
        return self._asdict() | named


def summarise(sums: Mapping[str, Array], n_scored: Array, clusters: Sequence[Hashable]) -> Summary:
    """Means with their errors.

    Args:
        sums: of each quantity, over the scored tokens of each sequence.
        n_scored: the number of those tokens.
        clusters: a label for each sequence; equal labels are one cluster.
    """
    one_each = np.ones(len(n_scored))
    return Summary(
        n_items=len(n_scored),
        n_clusters=len(set(clusters)),
        n_scored=int(n_scored.sum()),
        sums={name: ratio_estimate(x, one_each, clusters) for name, x in sums.items()},
        means={name: ratio_estimate(x, n_scored, clusters) for name, x in sums.items()},
    )


class SequenceSums(NamedTuple):
    """Of each sequence, with the model that wrote it first: d_t = log writer − log other of its tokens."""

    exact: Array | None  # Σ_t KL(writer ‖ other)_t, if known
    k1: Array  # Σ_t d_t
    k3: Array  # Σ_t (expm1(−d_t) + d_t)


def sequence_sums(k1: Iterable[Array], exact: Array | None, *, reference_wrote: bool = False) -> SequenceSums:
    """Sums of each sequence from its tokens' k1 = log policy − log reference; `exact` is the writer's already."""
    written = [-tokens if reference_wrote else tokens for tokens in k1]
    with np.errstate(invalid="ignore", over="ignore"):
        return SequenceSums(
            exact=exact,
            k1=np.array([d.sum() for d in written]),
            k3=np.array([(np.expm1(-d) + d).sum() for d in written]),
        )


def sequence_kl(sums: SequenceSums, clusters: Sequence[Hashable], *, level: float = LEVEL) -> SequenceKL:
    """Three estimates of KL(writer ‖ other) of whole sequences, if the writer sampled them.

    Σ_t KL_t replaces each d_t by its mean given the prefix (Rao–Blackwell). All are unbiased for the KL of the
    process cut at its maximum length. Σ KL_t usually varies far less than Σ k1_t, and not always (numerics T5 and
    T32), so the ratio is measured.
    """
    one_each = np.ones(len(sums.k1))

    def mean(values: Array) -> Estimate:
        return ratio_estimate(values, one_each, clusters, level=level)

    exact, k1 = None if sums.exact is None else mean(sums.exact), mean(sums.k1)
    return SequenceKL(exact, k1, mean(sums.k3), None if exact is None else _variance_ratio(k1, exact))


def _variance_ratio(one: Estimate, other: Estimate) -> float | None:
    if one.se is None or other.se is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.square(np.float64(one.se)) / np.square(np.float64(other.se)))


def effective_sample_size(log_weights: Array) -> EffectiveSampleSize:
    """(Σw)² / Σw² of importance weights w (Kish 1965), from their logarithms up to a constant.

    Sequences of one model stand for the other with ln w = −SequenceSums.k1, self-normalised. −∞ is a weight of 0;
    +∞ gives NaN.
    """
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_weights - log_weights.max())
        size = float(np.square(weights.sum()) / np.square(weights).sum())
    return EffectiveSampleSize(size, size / len(log_weights))
