"""The per-token columns of an answer of /v1/scores. Every quantity is in nats unless it says otherwise."""

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas import Number

Offsets = Literal["byte", "codepoint", "utf16", "none"]
EncodingFormat = Literal["float", "base64"]
Integers = list[int] | str  # a string is base64
Column = list[Number] | str


class TokenColumns(BaseModel):
    """One entry per token. Entry t is about the distribution that predicts token t; null where not scored.

    Quantities that were not asked for are absent.
    """

    ids: Integers
    text: list[str] = Field(description="U+FFFD stands for a part of a character.")
    start: Integers = Field(
        default_factory=list,
        description="Offset into prompt + text; into the joined pieces of token ids; into the rendered "
        "conversation. Bytes of UTF-8 unless `offsets` asks for another unit.",
    )
    end: Integers = Field(default_factory=list)
    scored: list[bool] = Field(description="False for the first token and for the prompt.")
    policy_logprob: Column = Field(default_factory=list)
    reference_logprob: Column = Field(default_factory=list)
    k1: Column = Field(default_factory=list)
    k2: Column = Field(default_factory=list)
    k3: Column = Field(default_factory=list)
    kl: Column = Field(default_factory=list, description="Exact KL(policy ‖ reference).")
    kl_ref: Column = Field(default_factory=list, description="Exact KL(reference ‖ policy).")
    js: Column = Field(default_factory=list, description="Jensen–Shannon, weights ½: at most ln 2.")
    tv: Column = Field(
        default_factory=list, description="Total variation ½ Σ |policy − reference|: at most 1, no unit."
    )
    entropy: Column = Field(default_factory=list, description="Of the policy.")
    cross_entropy: Column = Field(default_factory=list, description="−Σ policy ln reference.")
    entropy_ref: Column = Field(default_factory=list, description="Of the reference.")
    policy_rank: Column = Field(
        default_factory=list, description="Of the token among all for the policy: 1 is the likeliest."
    )
    reference_rank: Column = Field(default_factory=list, description="The same for the reference.")


class TopColumns(BaseModel):
    """Per token the k vocabulary items with the largest parts of its KL, largest first; null where not scored.

    A part is p ln(p/q) − p + q: it is never negative, and those of the whole vocabulary sum to kl. In base64 a
    column is one array of tokens × k, row by row, with id −1 and NaN where not scored.
    """

    k: int
    ids: list[list[int] | None] | str
    text: list[list[str] | None]
    policy_logprob: list[list[Number] | None] | str
    reference_logprob: list[list[Number] | None] | str
    kl_term: list[list[Number] | None] | str
    kl_rest: Column = Field(
        description="The part of kl of all items that are not among these: Σ kl_term + kl_rest = kl, to float32."
    )


class Encoding(BaseModel):
    """What a base64 column holds: little-endian numbers, NaN where not scored."""

    quantities: Literal["float32"] = "float32"
    integers: Literal["int32"] = "int32"
    byte_order: Literal["little"] = "little"
