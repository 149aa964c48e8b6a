"""What clients send to and read from /v1/scores and /v1/divergences. Every quantity is in nats."""

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from api.schemas import Number
from api.schemas_inputs import FORMS, MAX_ITEMS, Input, Item, items_of
from api.schemas_tokens import Encoding, EncodingFormat, Offsets, TokenColumns, TopColumns
from jobs.scoring_wire import MAX_TOP_K, Truncation
from rlhf_core.config import Config

Quantity = Literal[
    "policy_logprob",
    "reference_logprob",
    "k1",
    "k2",
    "k3",
    "kl",
    "kl_ref",
    "js",
    "tv",
    "entropy",
    "cross_entropy",
    "entropy_ref",
    "policy_rank",
    "reference_rank",
]
DEFAULT_QUANTITIES: list[Quantity] = ["policy_logprob", "reference_logprob", "k1", "k3", "kl", "entropy"]
SUM_TOLERANCE = 1e-6  # of probabilities around 1
LOGPROB_TOLERANCE = 1e-6  # above 0: a float32 log-softmax rounds that far
Probability = Annotated[float, Field(ge=0, le=1)]
LogProbability = Annotated[float, Field(le=LOGPROB_TOLERANCE)]
# Lists fail fast: a body of 1 MB full of wrong elements would make 400,000 errors.
Probabilities = Annotated[list[Probability], Field(min_length=1, fail_fast=True)]
LogProbabilities = Annotated[list[LogProbability], Field(min_length=1, fail_fast=True)]
Logits = Annotated[list[float], Field(min_length=1, fail_fast=True)]


_Rewards = Annotated[list[float], Field(max_length=MAX_ITEMS, fail_fast=True)]


class ScoresRequest(Config):
    """Texts to score, and against which pair of models."""

    policy: str | None = Field(
        None, min_length=1, max_length=4096, description="A model's name; without it the default policy."
    )
    reference: str | None = Field(None, min_length=1, max_length=4096)
    input: Input = Field(description=f"{FORMS[0].upper()}{FORMS[1:]}, or a list of these.")
    quantities: list[Quantity] = Field(
        DEFAULT_QUANTITIES, min_length=1, max_length=len(get_args(Quantity)), fail_fast=True
    )
    temperature: float = Field(1.0, gt=0, le=10, description="Divides the logits of both models.")
    sampled_from: Literal["policy", "unknown"] = Field(
        "unknown",
        description="`policy` claims that every text was sampled from the policy at this temperature, from the "
        "whole softmax. Only then do means of k1 and k3 estimate KL.",
    )
    reward: float | _Rewards | None = Field(None, description="One number per item.")
    beta: float | None = Field(None, ge=0, description="adjusted_reward = reward − beta × Σ k1")
    per_token: bool = True
    top_k: int = Field(
        0, ge=0, le=MAX_TOP_K, description="So many vocabulary items per token, by their part of kl."
    )
    numerics: Literal["fast", "strict"] = Field(
        "fast", description="strict: to the bit the same whatever else is scored at the same time."
    )
    add_special_tokens: bool = Field(
        True,
        description="Those that the tokenizer puts around a text or a prompt; a chat template writes its own.",
    )
    truncation: Truncation = Field(
        "error", description="Which end of an item loses the tokens that the models' context has no room for."
    )
    offsets: Offsets = Field("byte", description="The unit of `start` and `end`; none leaves them out.")
    encoding_format: EncodingFormat = Field(
        "float", description="base64: columns of numbers as little-endian float32 and int32."
    )
    request_timeout_s: float | None = Field(None, gt=0, description="At most what the deployment allows.")

    @cached_property
    def items(self) -> list[Item]:
        """The items, also when only one was sent."""
        return items_of(self.input)

    @property
    def rewards(self) -> list[float] | None:
        """The reward of each item."""
        return [self.reward] if isinstance(self.reward, float | int) else self.reward

    @model_validator(mode="after")
    def _rewards_fit(self) -> Self:
        _together(self.reward, self.beta)
        if self.rewards is not None and len(self.rewards) != len(self.items):
            raise ValueError(f"reward has {len(self.rewards)} numbers and input has {len(self.items)} items")
        return self


class ModelId(BaseModel):
    """A model by the name of the request."""

    id: str


class Tokenizer(BaseModel):
    """The tokenizer that both models share."""

    sha256: str
    vocab_size: int


class Numerics(BaseModel):
    """How the numbers were computed."""

    weights_dtype: str
    logits_dtype: Literal["float32"] = "float32"
    temperature: float
    unit: Literal["nats"] = "nats"
    mode: Literal["fast", "strict"]
    batch_invariant: bool = Field(description="True if nothing else that is scored can change a bit.")


class Score(BaseModel):
    """One text's answer."""

    object: Literal["score"] = "score"
    index: int
    n_tokens: int
    n_scored: int
    sampled_from: Literal["policy", "unknown"]
    sums: dict[Quantity, Number] = Field(description="Over the scored tokens.")
    means: dict[Quantity, Number] = Field(description="Per scored token.")
    adjusted_reward: Number = Field(description="reward − beta × Σ k1; null without a reward.")
    truncated: bool = Field(description="True if tokens were left out, as `truncation` allowed.")
    tokens: TokenColumns | None = Field(description="null if per_token is false.")
    top: TopColumns | None = Field(description="null unless top_k is given.")


class ScoreError(BaseModel):
    """Why a text could not be scored; `code` is stable."""

    code: str
    detail: str


class FailedScore(BaseModel):
    """A text that could not be scored, while others could."""

    object: Literal["score"] = "score"
    index: int
    error: ScoreError


class Estimate(BaseModel):
    """A mean over texts with its standard error; null where it is not defined."""

    mean: Number
    se: Number


class Summary(BaseModel):
    """Means over the scored texts. Standard errors cluster by text, or by prompt where texts share one."""

    n_items: int
    n_clusters: int
    n_scored: int
    sums: dict[Quantity, Estimate] = Field(description="Per text.")
    means: dict[Quantity, Estimate] = Field(description="Per token, as a ratio estimate.")


class Usage(BaseModel):
    """Tokens of all texts that could be scored."""

    input_tokens: int
    scored_tokens: int


class ScoreList(BaseModel):
    """The answer to a request for scores."""

    object: Literal["list"] = "list"
    id: str
    created_at: str
    policy: ModelId
    reference: ModelId
    tokenizer: Tokenizer
    numerics: Numerics
    encoding: Encoding | None = Field(description="null where numbers are JSON.")
    partial: bool = Field(description="True if some texts could not be scored.")
    data: list[Score | FailedScore]
    summary: Summary | None = Field(description="null for a single text.")
    note: str = Field(description="What means of k1 and k3 say here.")
    usage: Usage


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
        _together(self.reward, self.beta)
        ours, theirs = len(self.policy_logprobs), len(self.reference_logprobs)
        if ours != theirs:
            raise ValueError(f"policy_logprobs has {ours} entries and reference_logprobs has {theirs}")
        return self


def _divergence_tag(value: Any) -> str | None:
    if isinstance(value, DistributionsRequest):
        return "distributions"
    if isinstance(value, SampledTokensRequest):
        return "tokens"
    if not isinstance(value, Mapping):
        return None
    return "tokens" if {"policy_logprobs", "reference_logprobs"} & set(value) else "distributions"


DivergencesRequest = Annotated[
    Annotated[DistributionsRequest, Tag("distributions")] | Annotated[SampledTokensRequest, Tag("tokens")],
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


def _together(reward: object, beta: object) -> None:
    if (reward is None) != (beta is None):
        raise ValueError("give reward and beta together")
