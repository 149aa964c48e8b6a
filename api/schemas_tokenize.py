"""What clients send to and read from /v1/tokenize and /v1/detokenize."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from api.schemas_inputs import MAX_ITEMS, TokenIdList
from api.schemas_scores import ModelId
from api.schemas_tokens import Offsets
from rlhf_core.config.base import Config, PathName

_Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
_Lists = Annotated[list[TokenIdList], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]
_UNIT = "The unit of `start` and `end`; none leaves them out."


class TokenizeRequest(Config):
    """Texts to be tokenised as /v1/scores tokenises them."""

    model: PathName | None = Field(None, description="A model's name; without it the default policy.")
    input: str | _Texts = Field(description="A text, also an empty one, or a list of texts.")
    add_special_tokens: bool = Field(True, description="Those that the tokenizer puts around a text.")
    offsets: Offsets = Field("byte", description=_UNIT)

    @property
    def texts(self) -> list[str]:
        """The texts, also when only one was sent."""
        return [self.input] if isinstance(self.input, str) else self.input


class DetokenizeRequest(Config):
    """Token ids to be spelled."""

    model: PathName | None = Field(None, description="A model's name; without it the default policy.")
    input: TokenIdList | _Lists = Field(description="Token ids, or a list of lists of token ids.")
    offsets: Offsets = Field("byte", description=_UNIT)

    @property
    def lists(self) -> list[list[int]]:
        """The lists of ids, also when only one was sent."""
        return [item for item in self.input if isinstance(item, list)] or [
            [item for item in self.input if isinstance(item, int)]
        ]


class PlainTokens(BaseModel):
    """One entry per token, in order. Consecutive tokens' spans tile the text."""

    ids: list[int]
    text: list[str] = Field(description="U+FFFD stands for a part of a character.")
    special: list[bool] = Field(description="True for ids that the tokenizer declares special.")
    start: list[int] = Field(
        default_factory=list,
        description="Offset into the text, in bytes of UTF-8 unless `offsets` asks for another unit. In the other "
        "units tokens that share a character span the whole of it. What the tokenizer added spans nothing.",
    )
    end: list[int] = Field(default_factory=list)


class TokenizedText(BaseModel):
    """One text's tokens."""

    object: Literal["tokens"] = "tokens"
    index: int
    n_tokens: int
    tokens: PlainTokens


class DetokenizedText(BaseModel):
    """What one list of ids stands for."""

    object: Literal["text"] = "text"
    index: int
    n_tokens: int
    text: str
    lossless: bool = Field(description="False if the ids end inside a character: U+FFFD stands for its part.")
    tokens: PlainTokens


class TokenUsage(BaseModel):
    """Tokens of all items."""

    input_tokens: int


class Tokenizer(BaseModel):
    """The tokenizer of the model that was asked for."""

    sha256: str
    vocab_size: int


class TokenizedList(BaseModel):
    """The answer to a request for tokens."""

    object: Literal["list"] = "list"
    model: ModelId
    tokenizer: Tokenizer
    data: list[TokenizedText]
    usage: TokenUsage


class DetokenizedList(BaseModel):
    """The answer to a request for texts."""

    object: Literal["list"] = "list"
    model: ModelId
    tokenizer: Tokenizer
    data: list[DetokenizedText]
    usage: TokenUsage
