"""Which reward judges the completions."""

import re
from typing import Annotated, Literal

from pydantic import Field, Strict, field_validator

from rlhf_core.config.base import Config, PathName, Strings

OWN_METRICS = frozenset({"adjusted", "gold", "shaped"})  # reward/<name>_mean of these is ours


class SentimentReward(Config):
    """Polarity of prompt + completion in [−1, 1] (TextBlob's lexicon)."""

    kind: Literal["sentiment"] = "sentiment"


class LengthReward(Config):
    """−|tokens − target| / target of the completion."""

    kind: Literal["length"] = "length"
    target_tokens: int = Field(ge=1)


class KeywordReward(Config):
    """Fraction of the keywords found in the completion (whole words, any case)."""

    kind: Literal["keyword"] = "keyword"
    keywords: Strings = Field(max_length=100)


class RegexReward(Config):
    """1 if the pattern is found in the completion, else 0; a search over the timeout is an error."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=1000, description="In the syntax of Python's `re`.")
    timeout_s: float = Field(0.1, gt=0, le=5)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, ValueError, OverflowError, RecursionError):
            raise ValueError("is not a regular expression that Python's re accepts") from None
        return pattern


class ClassifierReward(Config):
    """Logit of one label of a sequence classifier that reads prompt + completion, of a long text the end."""

    kind: Literal["classifier"] = "classifier"
    model: PathName = Field(description="A name or path, as of any model; weights in safetensors.")
    label: Annotated[str, Field(min_length=1, max_length=200)] | Annotated[int, Field(ge=0)] | None = Field(
        None, description="Name or index; a reward model, which has one output, needs none."
    )
    batch_size: int = Field(16, ge=1, le=1024, description="Texts that are read at a time.")


class HttpReward(Config):
    """What an endpoint answers to `{"prompts": […], "completions": […]}`: `{"rewards": […]}`, a number each.

    It must answer the same completions with the same numbers: otherwise a resumed run is not the run it continues.
    """

    kind: Literal["http"] = "http"
    url: str = Field(
        min_length=1,
        max_length=2000,
        description="https, on port 443, of a public host; the operator may allow others.",
    )
    timeout_s: float = Field(30.0, gt=0, le=600, description="For one request, all in all.")
    batch_size: int = Field(64, ge=1, le=1024, description="Completions in one request.")
    retries: int = Field(3, ge=0, le=10, description="After 429, 5xx, a timeout or no connection.")


SingleReward = SentimentReward | LengthReward | KeywordReward | RegexReward | ClassifierReward | HttpReward


class RewardPart(Config):
    """One term of a weighted sum."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40, description="Of its metric.")
    weight: float = Field(description="Below 0 it is a cost.")
    reward: SingleReward = Field(discriminator="kind")

    @field_validator("name")
    @classmethod
    def _is_not_ours(cls, name: str) -> str:
        if name in OWN_METRICS:
            raise ValueError(
                f"must not be one of {', '.join(sorted(OWN_METRICS))}: these metrics exist already"
            )
        return name


class WeightedReward(Config):
    """Σ weight · reward over its parts; the mean of each before its weight is `reward/<name>_mean`."""

    kind: Literal["weighted"] = "weighted"
    parts: Annotated[tuple[RewardPart, ...], Strict(False)] = Field(min_length=1, max_length=12)

    @field_validator("parts")
    @classmethod
    def _names_differ(cls, parts: tuple[RewardPart, ...]) -> tuple[RewardPart, ...]:
        if len({part.name for part in parts}) < len(parts):
            raise ValueError("every part needs a name of its own: two share one, and so would their metrics")
        return parts


RewardConfig = Annotated[SingleReward | WeightedReward, Field(discriminator="kind")]


def classifiers_of(reward: RewardConfig) -> tuple[ClassifierReward, ...]:
    """The classifiers that a reward asks."""
    return tuple(single for single in _singles(reward) if isinstance(single, ClassifierReward))


def urls_of(reward: RewardConfig) -> tuple[str, ...]:
    """The endpoints that a reward asks."""
    return tuple(single.url for single in _singles(reward) if isinstance(single, HttpReward))


def _singles(reward: RewardConfig) -> list[SingleReward]:
    return [part.reward for part in reward.parts] if isinstance(reward, WeightedReward) else [reward]
