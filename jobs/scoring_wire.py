"""What the API and a scorer say to each other: JSON in, a JSON header with raw float32 arrays out.

The scorer sees folders (or hub ids from the registry), never a client's names; the API sees arrays, never a
model.
"""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from rlhf_core.config import Config

QUANTITIES = (
    *("policy_logprob", "reference_logprob", "k1", "k2", "k3"),  # of the token in the text
    *("kl", "kl_ref", "js", "tv", "entropy", "cross_entropy"),  # of the distributions that predict it
)
MEDIA_TYPE = "application/vnd.kleash.scores"


class ModelSource(Config):
    """Where a model's weights are: a full model, or a PEFT adapter and the base it belongs to."""

    path: str
    base: str | None = None


class ScoreItem(Config):
    """A text, and the prompt before it that is only context."""

    prompt: str | None = None
    text: str = Field(description="The text, or the completion when there is a prompt.")


class ScoreRequest(Config):
    """One request to a scorer."""

    policy: ModelSource
    reference: ModelSource
    items: list[ScoreItem]
    temperature: float = Field(1.0, gt=0)
    quantities: tuple[str, ...] = QUANTITIES


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """One item's answer: one entry per token; entry t is about the distribution that predicts token t.

    `scored[t]` is False for token 0 and for the prompt; quantities are NaN there.
    """

    token_ids: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]  # byte offsets into the UTF-8 of prompt + text
    end: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    quantities: dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ItemError:
    """Why one item could not be scored; the others can."""

    code: str
    detail: str
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScoreReply:
    """Answers in the order of the request's items, and what produced them."""

    items: list[ItemScores | ItemError]
    tokenizer_sha256: str
    vocab_size: int
    weights_dtype: str


def encode_reply(reply: ScoreReply) -> bytes:
    """`<u32 header length><header JSON><arrays>`, little-endian, in the header's order."""
    arrays: list[bytes] = []
    items: list[dict[str, Any]] = []
    for item in reply.items:
        if isinstance(item, ItemError):
            items.append({"error": {"code": item.code, "detail": item.detail, "context": item.context}})
            continue
        items.append({"tokens": len(item.token_ids), "quantities": list(item.quantities)})
        arrays += [array.astype("<i4").tobytes() for array in (item.token_ids, item.start, item.end)]
        arrays.append(item.scored.astype("u1").tobytes())
        arrays += [array.astype("<f4").tobytes() for array in item.quantities.values()]
    header = json.dumps(
        {
            "items": items,
            "tokenizer_sha256": reply.tokenizer_sha256,
            "vocab_size": reply.vocab_size,
            "weights_dtype": reply.weights_dtype,
        }
    ).encode()
    return struct.pack("<I", len(header)) + header + b"".join(arrays)


def decode_reply(body: bytes) -> ScoreReply:
    """The inverse of `encode_reply`; arrays are views into `body`."""
    (header_bytes,) = struct.unpack_from("<I", body)
    header = json.loads(body[4 : 4 + header_bytes])
    offset = 4 + header_bytes

    def take(dtype: str, count: int) -> npt.NDArray[Any]:
        nonlocal offset
        array = np.frombuffer(body, dtype=dtype, count=count, offset=offset)
        offset += array.nbytes
        return array

    items: list[ItemScores | ItemError] = []
    for entry in header["items"]:
        if "error" in entry:
            items.append(ItemError(**entry["error"]))
            continue
        n = entry["tokens"]
        items.append(
            ItemScores(
                token_ids=take("<i4", n),
                start=take("<i4", n),
                end=take("<i4", n),
                scored=take("u1", n).astype(np.bool_),
                quantities={name: take("<f4", n) for name in entry["quantities"]},
            )
        )
    return ScoreReply(
        items=items,
        tokenizer_sha256=header["tokenizer_sha256"],
        vocab_size=header["vocab_size"],
        weights_dtype=header["weights_dtype"],
    )
