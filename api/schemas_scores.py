"""What clients send to and read from /v1/scores. Every quantity is in nats."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from api.schemas import Number
from api.schemas_statistics import Attribution, EffectiveSampleSize, Estimate, SampledFrom, SequenceKL
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
MAX_ITEMS = 4096  # of any deployment; Settings.max_items is the lower one of this deployment


class Completion(Config):
    """A prompt, which is only context, and the completion to score."""

    prompt: str
    completion: str


def _item_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "completion" if isinstance(value, Mapping | Completion) else None


def _input_tag(value: Any) -> str | None:
    return "items" if isinstance(value, list) else _item_tag(value)


_Text = Annotated[str, Tag("text")]
_Completion = Annotated[Completion, Tag("completion")]
Item = Annotated[
    _Text | _Completion,
    Discriminator(
        _item_tag,
        custom_error_type="input_item",
        custom_error_message="must be a text or {prompt, completion}",
    ),
]
_Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True), Tag("items")]
_Rewards = Annotated[list[float], Field(max_length=MAX_ITEMS, fail_fast=True)]
Input = Annotated[
    _Text | _Completion | _Items,
    Discriminator(
        _input_tag,
        custom_error_type="input",
        custom_error_message="must be a text, {prompt, completion}, or a list of these",
    ),
]


class ScoresRequest(Config):
    """Texts to score, and against which pair of models."""

    policy: str | None = Field(
        None, min_length=1, max_length=4096, description="A model's name; without it the default policy."
    )
    reference: str | None = Field(None, min_length=1, max_length=4096)
    input: Input = Field(description="A text, {prompt, completion}, or a list of these.")
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
    attribution: bool = Field(
        False, description="Also say which tokens, positions, classes and vocabulary items carry the KL."
    )

    @property
    def items(self) -> list[str | Completion]:
        """The texts, also when only one was sent."""
        return self.input if isinstance(self.input, list) else [self.input]

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


class TokenColumns(BaseModel):
    """One entry per token. Entry t is about the distribution that predicts token t; null where not scored.

    Quantities that were not asked for are absent.
    """

    ids: list[int]
    text: list[str] = Field(description="U+FFFD stands for a part of a character.")
    start: list[int] = Field(description="Byte offset into the UTF-8 of prompt + text.")
    end: list[int]
    scored: list[bool] = Field(description="False for the first token and for the prompt.")
    policy_logprob: list[Number] = Field(default_factory=list)
    reference_logprob: list[Number] = Field(default_factory=list)
    k1: list[Number] = Field(default_factory=list)
    k2: list[Number] = Field(default_factory=list)
    k3: list[Number] = Field(default_factory=list)
    kl: list[Number] = Field(default_factory=list, description="Exact KL(policy ‖ reference).")
    kl_ref: list[Number] = Field(default_factory=list, description="Exact KL(reference ‖ policy).")
    js: list[Number] = Field(default_factory=list, description="Jensen–Shannon, weights ½: at most ln 2.")
    tv: list[Number] = Field(
        default_factory=list, description="Total variation ½ Σ |policy − reference|: at most 1, no unit."
    )
    entropy: list[Number] = Field(default_factory=list, description="Of the policy.")
    cross_entropy: list[Number] = Field(default_factory=list, description="−Σ policy ln reference.")
    entropy_ref: list[Number] = Field(default_factory=list, description="Of the reference.")
    policy_rank: list[Number] = Field(
        default_factory=list, description="Of the token among all for the policy: 1 is the likeliest."
    )
    reference_rank: list[Number] = Field(default_factory=list, description="The same for the reference.")


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
    tokens: TokenColumns | None = Field(description="null if per_token is false.")


class ScoreError(BaseModel):
    """Why a text could not be scored; `code` is stable."""

    code: str
    detail: str


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
    policy: ModelId
    reference: ModelId
    tokenizer: Tokenizer
    numerics: Numerics
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
