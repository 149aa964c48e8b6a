"""Which reward judges the completions."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rlhf_core.config.base import Config, Strings


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


RewardConfig = Annotated[
    SentimentReward | LengthReward | KeywordReward | RegexReward, Field(discriminator="kind")
]
