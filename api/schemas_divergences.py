"""What clients send to and read from /v1/divergences. Every quantity is in nats."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from api.schemas import Number
from api.schemas_scores import Summary, together
from api.schemas_statistics import SampledFrom
from rlhf_core.config.base import Config

SUM_TOLERANCE = 1e-6  # of probabilities around 1
LOGPROB_TOLERANCE = 1e-6  # above 0: a float32 log-softmax rounds that far
MAX_TEXTS = 4096
KL_TOLERANCE = 1e-4  # below 0: Σ p (ln p − ln q) in float32 cancels that far
Probability = Annotated[float, Field(ge=0, le=1)]
LogProbability = Annotated[float, Field(le=LOGPROB_TOLERANCE)]
# Lists fail fast: a body of 1 MB full of wrong elements would make 400,000 errors.
Probabilities = Annotated[list[Probability], Field(min_length=1, fail_fast=True)]
LogProbabilities = Annotated[list[LogProbability], Field(min_length=1, fail_fast=True)]
SequencesOfLogProbabilities = Annotated[
    list[LogProbabilities], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)
]
Divergences = Annotated[list[Annotated[float, Field(ge=-KL_TOLERANCE)]], Field(fail_fast=True)]
SequencesOfDivergences = Annotated[list[Divergences], Field(max_length=MAX_TEXTS, fail_fast=True)]
Label = Annotated[str, Field(max_length=256)] | int
Logits = Annotated[list[float], Field(min_length=1, fail_fast=True)]


class Distribution(Config):
    """A distribution over a vocabulary, by exactly one of its three forms."""

    probs: Probabilities | None = None
    logits: Logits | None = None
    logprobs: LogProbabilities | None = None

    @property
    def values(self) -> list[float]:
        """The numbers of the form that was given."""
        return self.probs or self.logits or self.logprobs or []

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        if sum(form is not None for form in (self.probs, self.logits, self.logprobs)) != 1:
            raise ValueError("give exactly one of probs, logits and logprobs")
        if self.logits is None:
            terms = self.probs or [math.exp(value) for value in self.logprobs or []]
            total = math.fsum(terms)
            if abs(total - 1) > SUM_TOLERANCE:
                raise ValueError(
                    f"the probabilities must sum to 1 within {SUM_TOLERANCE}, not to {total:.9g}"
                )
        return self


class DistributionsRequest(Config):
    """Two distributions over the same vocabulary."""

    policy: Distribution
    reference: Distribution

    @model_validator(mode="after")
    def _same_vocabulary(self) -> Self:
        ours, theirs = len(self.policy.values), len(self.reference.values)
        if ours != theirs:
            raise ValueError(f"policy has {ours} entries and reference has {theirs}")
        return self


class SampledTokensRequest(Config):
    """What both models say of the tokens of one text, as natural logarithms."""

    policy_logprobs: LogProbabilities
    reference_logprobs: LogProbabilities
    reward: float | None = None
    beta: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        together(self.reward, self.beta)
        ours, theirs = len(self.policy_logprobs), len(self.reference_logprobs)
        if ours != theirs:
            raise ValueError(f"policy_logprobs has {ours} entries and reference_logprobs has {theirs}")
        return self


class SequencesRequest(Config):
    """The same of several texts, which together have means with errors and intervals."""

    policy_logprobs: SequencesOfLogProbabilities = Field(description="A list for each text.")
    reference_logprobs: SequencesOfLogProbabilities
    kl: SequencesOfDivergences | None = Field(
        None, description="Exact KL(policy ‖ reference) at each token, where it is known."
    )
    kl_ref: SequencesOfDivergences | None = Field(None, description="Exact KL(reference ‖ policy).")
    clusters: Annotated[list[Label], Field(max_length=MAX_TEXTS, fail_fast=True)] | None = Field(
        None,
        description="A label for each text; equal labels are texts that are not independent, such as completions "
        "of one prompt. Without it each text is alone.",
    )
    sampled_from: SampledFrom = Field("unknown", description="As in /v1/scores.")
    reward: Annotated[list[float], Field(max_length=MAX_TEXTS, fail_fast=True)] | None = Field(
        None, description="One number per text."
    )
    beta: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        together(self.reward, self.beta)
        n_tokens = [len(sequence) for sequence in self.policy_logprobs]
        for name in ("reference_logprobs", "kl", "kl_ref", "clusters", "reward"):
            column = getattr(self, name)
            if column is not None and len(column) != len(n_tokens):
                raise ValueError(f"policy_logprobs has {len(n_tokens)} texts and {name} has {len(column)}")
        for name in ("reference_logprobs", "kl", "kl_ref"):
            lengths = map(len, getattr(self, name) or [])
            for index, (ours, theirs) in enumerate(zip(n_tokens, lengths, strict=False)):
                if ours != theirs:
                    raise ValueError(
                        f"text {index}: policy_logprobs has {ours} entries and {name} has {theirs}"
                    )
        return self


def _divergence_tag(value: Any) -> str | None:
    if isinstance(value, DistributionsRequest):
        return "distributions"
    if isinstance(value, SampledTokensRequest):
        return "tokens"
    if isinstance(value, SequencesRequest):
        return "sequences"
    if not isinstance(value, Mapping):
        return None
    columns = [value[name] for name in ("policy_logprobs", "reference_logprobs") if name in value]
    if any(isinstance(column, list) and column and isinstance(column[0], list) for column in columns):
        return "sequences"
    return "tokens" if columns else "distributions"


DivergencesRequest = Annotated[
    Annotated[DistributionsRequest, Tag("distributions")]
    | Annotated[SampledTokensRequest, Tag("tokens")]
    | Annotated[SequencesRequest, Tag("sequences")],
    Discriminator(
        _divergence_tag,
        custom_error_type="divergence",
        custom_error_message="must be {policy, reference} or {policy_logprobs, reference_logprobs}",
    ),
]


class DistributionDivergence(BaseModel):
    """How far two distributions are apart; null stands for +∞, and then `infinite` is true."""

    object: Literal["divergence"] = "divergence"
    unit: Literal["nats"] = "nats"
    size: int
    kl: Number = Field(description="KL(policy ‖ reference)")
    kl_ref: Number = Field(description="KL(reference ‖ policy)")
    js: float = Field(description="Jensen–Shannon, weights ½")
    tv: float = Field(description="½ Σ |policy − reference|, without a unit")
    entropy: float
    cross_entropy: Number = Field(description="−Σ policy ln reference")
    infinite: bool


class TokenEstimates(BaseModel):
    """One number for each estimator; null stands for +∞."""

    k1: Number
    k2: Number
    k3: Number


class SampledDivergence(BaseModel):
    """Per-token estimates; their means estimate KL only if the policy sampled the tokens. null stands for +∞."""

    object: Literal["divergence"] = "divergence"
    unit: Literal["nats"] = "nats"
    n_tokens: int
    k1: list[Number]
    k2: list[Number]
    k3: list[Number]
    sum: TokenEstimates
    adjusted_reward: Number = Field(description="reward − beta × Σ k1; null without a reward.")
    infinite: bool


Estimator = Literal["k1", "k2", "k3", "kl", "kl_ref"]


class SequenceDivergence(BaseModel):
    """One of several texts; null stands for +∞."""

    object: Literal["divergence"] = "divergence"
    index: int
    n_tokens: int
    sums: dict[Estimator, Number] = Field(description="kl and kl_ref as given, if they were.")
    means: dict[Estimator, Number] = Field(description="Per token.")
    adjusted_reward: Number = Field(description="reward − beta × Σ k1; null without a reward.")
    infinite: bool


class SequenceDivergences(BaseModel):
    """Several texts, and what they say together."""

    object: Literal["list"] = "list"
    unit: Literal["nats"] = "nats"
    sampled_from: SampledFrom
    data: list[SequenceDivergence]
    summary: Summary | None = Field(description="As in /v1/scores; null for a single text.")
    note: str = Field(description="What means of k1, k3 and kl say here.")
