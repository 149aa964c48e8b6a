"""What a call of `client.scores.create` may say."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

Item = str | Sequence[int] | Mapping[str, Any]


class ScoreOptions(TypedDict, total=False):
    """Fields of a request to /v1/scores beside its items."""

    policy: str | None
    reference: str | None
    quantities: Sequence[str] | None
    temperature: float | None
    sampled_from: str | None
    reward: float | Sequence[float] | None
    beta: float | None
    per_token: bool | None
    top_k: int | None
    attribution: bool | None
    numerics: Literal["fast", "strict"] | None
    add_special_tokens: bool | None
    truncation: Literal["error", "left", "right"] | None
    vocab_mismatch: Literal["error", "intersect"] | None
    offsets: Literal["byte", "codepoint", "utf16", "none"] | None
    encoding_format: Literal["float", "base64"] | None
    request_timeout_s: float | None
    metadata: Mapping[str, str] | None
