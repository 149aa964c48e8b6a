"""What several texts say together, as values for JSON: the summary of /v1/scores and /v1/divergences."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from api.schemas_statistics import SampledFrom
from rlhf_core import statistics
from rlhf_core.statistics import Array, SequenceSums, effective_sample_size, sequence_kl

IF_WHOLE = "if every token was drawn from the whole softmax at this temperature"
NOTES: dict[SampledFrom, str] = {
    "policy": "The texts are claimed to be sampled from the policy: means of k1 and k3 estimate KL(policy ‖ "
    f"reference), and the mean of Σ kl its sequence KL, {IF_WHOLE}.",
    "reference": "The texts are claimed to be sampled from the reference: means of −k1 estimate KL(reference ‖ "
    f"policy), and the mean of Σ kl_ref its sequence KL, {IF_WHOLE}. Means of k1 and k3 do not estimate KL(policy "
    "‖ reference); kl is exact at every position, and its sums are means over prefixes that the reference wrote.",
    "unknown": "The texts are not claimed to be sampled from either model: means of k1 and k3 describe these "
    "texts and do not estimate KL. kl is exact at every position; the mean of Σ kl is one over the prefixes of "
    "these texts, not an estimate of the sequence KL.",
}
EXACT: dict[SampledFrom, str] = {"policy": "kl", "reference": "kl_ref", "unknown": "kl"}


def summarise(
    sums: Mapping[str, Array],
    n_scored: Array,
    sequences: SequenceSums,
    *,
    clusters: Sequence[Hashable],
    sampled_from: SampledFrom,
) -> dict[str, Any]:
    """Means per text and per token over several texts; texts of one cluster are not independent.

    Args:
        sums: of each quantity that is shown, over the tokens of each text.
        n_scored: the number of those tokens.
        sequences: what sequence KL is estimated from, by the model that wrote the texts.
        clusters: a label for each text.
        sampled_from: the model that wrote the texts, as the caller claims.
    """
    return statistics.summarise(sums, n_scored, clusters).as_dict() | {
        "sequence_kl": _sequence_kl(sequences, clusters, sampled_from),
        "ess": _ess(sequences, sampled_from),
    }


def _sequence_kl(
    sequences: SequenceSums, clusters: Sequence[Hashable], sampled_from: SampledFrom
) -> dict[str, Any]:
    found = sequence_kl(sequences, clusters)
    return {
        "estimates": None if sampled_from == "unknown" else EXACT[sampled_from],
        "rao_blackwell": None if found.rao_blackwell is None else found.rao_blackwell._asdict(),
        "k1": found.k1._asdict(),
        "k3": found.k3._asdict(),
        "variance_ratio": found.variance_ratio,
    }


def _ess(sequences: SequenceSums, sampled_from: SampledFrom) -> dict[str, Any] | None:
    if sampled_from == "unknown":
        return None
    towards = "reference" if sampled_from == "policy" else "policy"
    return effective_sample_size(-sequences.k1)._asdict() | {"towards": towards}
