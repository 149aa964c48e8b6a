"""What /v1/scores/stream answers: one JSON object a line."""

from typing import Literal

from pydantic import BaseModel, Field, RootModel

from api.schemas_scores import (
    FailedScore,
    Numerics,
    Score,
    ScoredModel,
    ScoreError,
    SharedTokenizer,
    Summary,
    Usage,
)
from api.schemas_tokens import Encoding


class ScoreSummary(BaseModel):
    """The last line. A stream without it was cut off."""

    object: Literal["score.summary"] = "score.summary"
    id: str
    created_at: str
    metadata: dict[str, str]
    policy: ScoredModel
    reference: ScoredModel
    tokenizer: SharedTokenizer | None = Field(description="null if the scorer took no item.")
    numerics: Numerics | None
    encoding: Encoding | None = Field(description="null where numbers are JSON.")
    complete: bool = Field(description="True if every item has its line.")
    error: ScoreError | None = Field(description="Why it is not complete.")
    items: int
    failed: int = Field(description="Items whose line has an `error`.")
    missing: int = Field(description="Items without a line.")
    summary: Summary | None = Field(description="Of the items that were scored; null for fewer than two.")
    note: str = Field(description="What means of k1, k3 and kl say here.")
    usage: Usage


class StreamLine(RootModel[Score | FailedScore | ScoreSummary]):
    """Items in the order in which they are done, each with its `index`; then the summary."""
