"""What clients send to and read from /v1/scores. Every quantity is in nats."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

from api.schemas import Number
from api.schemas_inputs import FORMS, MAX_ITEMS, Input, Item, items_of
from api.schemas_statistics import Attribution, EffectiveSampleSize, Estimate, SampledFrom, SequenceKL
from api.schemas_tokens import Encoding, EncodingFormat, Offsets, TokenColumns, TopColumns
from jobs.scoring_wire import MAX_TOP_K, Truncation, VocabMismatch
from jobs.spec import MAX_METADATA, MetadataKey, MetadataValue
from rlhf_core.config.base import Config

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


Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA)]
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
    sampled_from: SampledFrom = Field(
        "unknown",
        description="`policy` claims that every text was sampled from the policy at this temperature, from the "
        "whole softmax. Only then do means of k1 and k3 estimate KL(policy ‖ reference). `reference` claims it of "
        "the reference: then means of −k1 estimate KL(reference ‖ policy).",
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
    vocab_mismatch: VocabMismatch = Field(
        "error",
        description="Where one model has logits for more ids than the other (padding, as a rule): error, or "
        "intersect: both distributions over the ids that both have, renormalised.",
    )
    offsets: Offsets = Field("byte", description="The unit of `start` and `end`; none leaves them out.")
    encoding_format: EncodingFormat = Field(
        "float", description="base64: columns of numbers as little-endian float32 and int32."
    )
    request_timeout_s: float | None = Field(None, gt=0, description="At most what the deployment allows.")
    metadata: Metadata = Field(default_factory=dict, description="The answer, or the job, repeats it.")
    attribution: bool = Field(
        False, description="Also say which tokens, positions, classes and vocabulary items carry the KL."
    )

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
        together(self.reward, self.beta)
        if self.rewards is not None and len(self.rewards) != len(self.items):
            raise ValueError(f"reward has {len(self.rewards)} numbers and input has {len(self.items)} items")
        return self


class ModelId(BaseModel):
    """A model by the name of the request."""

    id: str


class ScoredModel(ModelId):
    """A model by the name of the request, and which weights it stood for."""

    revision: str | None = Field(description="The hub's commit; null for a folder that is none of the hub's.")
    weights_sha256: str | None = Field(
        description="What `sha256sum *.safetensors` prints, of several files the sha256 of all that it prints; "
        "of an adapter, its own. null if no text was scored."
    )


class SharedTokenizer(BaseModel):
    """The tokenizer that both models share."""

    sha256: str
    shared: Literal[True] = True
    vocab_size: int = Field(description="Of the distributions that were compared: the smaller model's.")
    policy_vocab_size: int
    reference_vocab_size: int


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
    sampled_from: SampledFrom
    sums: dict[Quantity, Number] = Field(description="Over the scored tokens.")
    means: dict[Quantity, Number] = Field(description="Per scored token.")
    adjusted_reward: Number = Field(description="reward − beta × Σ k1; null without a reward.")
    warnings: list[Literal["non_finite_logits"]] = Field(
        description="non_finite_logits: NaN or infinity in a model's logits; sums that it reaches are null."
    )
    truncated: bool = Field(description="True if tokens were left out, as `truncation` allowed.")
    tokens: TokenColumns | None = Field(description="null if per_token is false.")
    top: TopColumns | None = Field(description="null unless top_k is given.")


class ScoreError(BaseModel):
    """Why a text could not be scored; `code` is stable."""

    code: str
    detail: str
    context: dict[str, Any] = Field(
        description="Its numbers: `limit` and `actual` of a text that is too long."
    )


class FailedScore(BaseModel):
    """A text that could not be scored, while others could."""

    object: Literal["score"] = "score"
    index: int
    error: ScoreError


class Summary(BaseModel):
    """Means over the scored texts. Standard errors cluster by text, or by prompt where texts share one."""

    n_items: int
    n_clusters: int
    n_scored: int
    sums: dict[Quantity, Estimate] = Field(description="Per text.")
    means: dict[Quantity, Estimate] = Field(description="Per token, as a ratio estimate.")
    sequence_kl: SequenceKL
    ess: EffectiveSampleSize | None = Field(
        description="null if the texts were not sampled from either model."
    )


class Usage(BaseModel):
    """Tokens of all texts that could be scored."""

    input_tokens: int
    scored_tokens: int


class ScoreList(BaseModel):
    """The answer to a request for scores."""

    object: Literal["list"] = "list"
    id: str
    created_at: str
    metadata: dict[str, str]
    policy: ScoredModel
    reference: ScoredModel
    tokenizer: SharedTokenizer
    numerics: Numerics
    encoding: Encoding | None = Field(description="null where numbers are JSON.")
    partial: bool = Field(description="True if some texts could not be scored.")
    data: list[Score | FailedScore]
    summary: Summary | None = Field(description="null for a single text.")
    attribution: Attribution | None = Field(description="null unless asked for.")
    note: str = Field(description="What means of k1, k3 and kl say here.")
    usage: Usage


def together(reward: object, beta: object) -> None:
    """Refuse one without the other."""
    if (reward is None) != (beta is None):
        raise ValueError("give reward and beta together")
