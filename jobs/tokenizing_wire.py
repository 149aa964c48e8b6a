"""What the API and a scorer say to each other about tokens alone: JSON in, a JSON header with raw arrays out."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from jobs.scoring_wire import ModelSource
from jobs.wire_frame import Frame, framed
from rlhf_core.config.base import Config

COLUMNS = ("token_ids", "start", "end")


class TokenizeRequest(Config):
    """Texts to be tokenised, or token ids to be spelled, by one model's tokenizer."""

    model: ModelSource
    texts: list[str] | None = None
    token_ids: list[list[int]] | None = None
    add_special_tokens: bool = True
    client: str = ""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.texts is None) == (self.token_ids is None):
            raise ValueError("give texts or token_ids")
        return self


@dataclass(frozen=True, kw_only=True)
class Tokenized:
    """One item: ids, their byte spans in `text`, and which ids are special to the tokenizer."""

    token_ids: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]
    end: npt.NDArray[np.int32]
    special: npt.NDArray[np.bool_]
    text: bytes


@dataclass(frozen=True, kw_only=True)
class TokenizeReply:
    """Answers in the order of the request's items, and by which tokenizer."""

    items: list[Tokenized]
    tokenizer_sha256: str
    vocab_size: int


def encode_tokens(reply: TokenizeReply) -> bytes:
    """The answer's bytes (jobs/wire_frame.py)."""
    header = {
        "items": [[len(item.token_ids), len(item.text)] for item in reply.items],
        "tokenizer_sha256": reply.tokenizer_sha256,
        "vocab_size": reply.vocab_size,
    }
    parts: list[bytes] = []
    for item in reply.items:
        parts += [getattr(item, name).astype("<i4").tobytes() for name in COLUMNS]
        parts += [item.special.astype("u1").tobytes(), item.text]
    return framed(header, parts)


def decode_tokens(body: bytes) -> TokenizeReply:
    """The inverse of `encode_tokens`; arrays are views into `body`."""
    frame = Frame(body)
    header, take = frame.header, frame.take
    items = [
        Tokenized(
            **{name: take("<i4", tokens) for name in COLUMNS},
            special=take("u1", tokens).astype(np.bool_),
            text=take("u1", size).tobytes(),
        )
        for tokens, size in header["items"]
    ]
    return TokenizeReply(
        items=items, tokenizer_sha256=header["tokenizer_sha256"], vocab_size=header["vocab_size"]
    )
