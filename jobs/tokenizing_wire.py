"""What the API and a scorer say to each other about tokens alone: JSON in, a JSON header with raw arrays out."""

import json
import struct
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from jobs.scoring_wire import ModelSource
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
    """`<u32 header length><header JSON><arrays>`, little-endian."""
    header = json.dumps(
        {
            "items": [[len(item.token_ids), len(item.text)] for item in reply.items],
            "tokenizer_sha256": reply.tokenizer_sha256,
            "vocab_size": reply.vocab_size,
        }
    ).encode()
    parts: list[bytes] = []
    for item in reply.items:
        parts += [getattr(item, name).astype("<i4").tobytes() for name in COLUMNS]
        parts += [item.special.astype("u1").tobytes(), item.text]
    return struct.pack("<I", len(header)) + header + b"".join(parts)


def decode_tokens(body: bytes) -> TokenizeReply:
    """The inverse of `encode_tokens`; arrays are views into `body`."""
    (header_bytes,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + header_bytes])
    offset = 4 + header_bytes

    def take(dtype: str, count: int) -> npt.NDArray[Any]:
        nonlocal offset
        array = np.frombuffer(body, dtype=dtype, count=count, offset=offset)
        offset += array.nbytes
        return array

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
