"""What the API and a scorer say to each other: JSON in, a JSON header with raw float32 arrays out.

The scorer sees folders (or hub ids), never a client's names; the API sees arrays, never a
model.
"""

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from jobs.wire_frame import Frame, framed
from rlhf_core.config.base import Config

QUANTITIES = (
    *("policy_logprob", "reference_logprob", "k1", "k2", "k3"),  # of the token in the text
    *("kl", "kl_ref", "js", "tv", "entropy", "cross_entropy", "entropy_ref"),  # of those that predict it
    *("policy_rank", "reference_rank"),  # of the token among all: 1 is the likeliest
)
MEDIA_TYPE = "application/vnd.kleash.scores"
MAX_TOP_K = 20
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)  # org/name
Truncation = Literal["error", "left", "right"]
VocabMismatch = Literal["error", "intersect"]


class ModelSource(Config):
    """Where a model's weights are: a full model, or a PEFT adapter and the base it belongs to."""

    path: str
    base: str | None = None


class ChatMessage(Config):
    """One turn of a conversation, for the tokenizer's chat template."""

    role: str
    content: str


class ScoreItem(Config):
    """A text (after a prompt, which is only context), token ids, or a conversation whose last turn is scored."""

    prompt: str | None = None
    text: str | None = Field(None, description="The text, or the completion when there is a prompt.")
    token_ids: list[int] | None = None
    score_from: int = Field(1, ge=1, description="Of token_ids: the first one that is scored.")
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = Field(True, description="Of a text: those that the tokenizer puts around it.")
    truncation: Truncation = Field("error", description="Which end loses what the context has no room for.")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(form is not None for form in (self.text, self.token_ids, self.messages)) != 1:
            raise ValueError("an item is a text, token ids or messages")
        if self.prompt is not None and self.text is None:
            raise ValueError("a prompt goes with a text")
        if self.score_from > 1 and self.token_ids is None:
            raise ValueError("score_from goes with token ids")
        return self


class ScoreRequest(Config):
    """One request to a scorer."""

    policy: ModelSource
    reference: ModelSource
    items: list[ScoreItem]
    temperature: float = Field(1.0, gt=0)
    quantities: tuple[str, ...] = QUANTITIES
    top_k: int = Field(
        0, ge=0, le=MAX_TOP_K, description="So many vocabulary items per token, by their part of kl."
    )
    numerics: Literal["fast", "strict"] = Field(
        "fast", description="strict: to the bit the same whatever else is scored at the same time."
    )
    vocab_mismatch: VocabMismatch = Field(
        "error", description="intersect: heads of different size are scored over the ids that both have."
    )
    client: str = Field("", description="Whose turn it is: clients share the scorer fairly.")


@dataclass(frozen=True, kw_only=True)
class TopTerms:
    """Per token the k vocabulary items with the largest parts of its KL, largest first; 0 where not scored."""

    ids: npt.NDArray[np.int32]  # [n_tokens, k]
    policy_logprob: npt.NDArray[np.float32]
    reference_logprob: npt.NDArray[np.float32]
    kl_term: npt.NDArray[np.float32]  # of all items they sum to kl


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """One item's answer: one entry per token; entry t is about the distribution that predicts token t.

    `scored[t]` is False for token 0 and for the prompt; quantities are NaN there.
    """

    token_ids: npt.NDArray[np.int32]
    start: npt.NDArray[np.int32]  # byte offsets into `text`, else into the UTF-8 of prompt + text
    end: npt.NDArray[np.int32]
    scored: npt.NDArray[np.bool_]
    quantities: dict[str, npt.NDArray[np.float32]]
    top: TopTerms | None = None  # if top_k was asked for
    text: bytes | None = None  # what token ids stand for, or how messages were rendered: the API has neither
    truncated: bool = False


@dataclass(frozen=True, kw_only=True)
class ItemError:
    """Why one item could not be scored; the others can."""

    code: str
    detail: str
    context: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which weights a name stood for when a text was scored; null where nobody can say."""

    revision: str | None = None  # the hub's commit
    weights_sha256: str | None = None  # of the safetensors; of an adapter, its own


@dataclass(frozen=True, kw_only=True)
class ScoreReply:
    """Answers in the order of the request's items, and what produced them."""

    items: list[ItemScores | ItemError]
    tokenizer_sha256: str
    vocab_size: int  # of both distributions: the smaller head's
    weights_dtype: str
    vocab_sizes: tuple[int, int] | None = None  # of the heads: policy, reference; None: as vocab_size
    models: tuple[Weights, Weights] = (Weights(), Weights())  # policy, reference
    pieces: dict[int, str] = field(default_factory=dict)  # what the ids in the items' `top` stand for
    spent: dict[str, float] = field(default_factory=dict)  # seconds: queue, tokenize, compute


def encode_reply(reply: ScoreReply) -> bytes:
    """The answer's bytes (jobs/wire_frame.py), arrays in the header's order."""
    arrays: list[bytes] = []
    items: list[dict[str, Any]] = []
    for item in reply.items:
        if isinstance(item, ItemError):
            items.append({"error": {"code": item.code, "detail": item.detail, "context": item.context}})
            continue
        top_k = 0 if item.top is None else item.top.ids.shape[1]
        items.append(
            {
                "tokens": len(item.token_ids),
                "quantities": list(item.quantities),
                "top_k": top_k,
                "text_bytes": None if item.text is None else len(item.text),
                "truncated": item.truncated,
            }
        )
        arrays += [array.astype("<i4").tobytes() for array in (item.token_ids, item.start, item.end)]
        arrays.append(item.scored.astype("u1").tobytes())
        arrays += [array.astype("<f4").tobytes() for array in item.quantities.values()]
        if item.top is not None:
            arrays.append(item.top.ids.astype("<i4").tobytes())
            terms = (item.top.policy_logprob, item.top.reference_logprob, item.top.kl_term)
            arrays += [array.astype("<f4").tobytes() for array in terms]
        if item.text is not None:
            arrays.append(item.text)
    header = {
        "items": items,
        "tokenizer_sha256": reply.tokenizer_sha256,
        "vocab_size": reply.vocab_size,
        "weights_dtype": reply.weights_dtype,
        "vocab_sizes": reply.vocab_sizes,
        "models": [asdict(weights) for weights in reply.models],
        "pieces": reply.pieces,
        "spent": reply.spent,
    }
    return framed(header, arrays)


def decode_reply(body: bytes) -> ScoreReply:
    """The inverse of `encode_reply`; arrays are views into `body`."""
    frame = Frame(body)
    header, take = frame.header, frame.take
    items: list[ItemScores | ItemError] = []
    for entry in header["items"]:
        if "error" in entry:
            items.append(ItemError(**entry["error"]))
            continue
        n, k = entry["tokens"], entry["top_k"]
        items.append(
            ItemScores(
                token_ids=take("<i4", n),
                start=take("<i4", n),
                end=take("<i4", n),
                scored=take("u1", n).astype(np.bool_),
                quantities={name: take("<f4", n) for name in entry["quantities"]},
                top=TopTerms(
                    ids=take("<i4", n * k).reshape(n, k),
                    policy_logprob=take("<f4", n * k).reshape(n, k),
                    reference_logprob=take("<f4", n * k).reshape(n, k),
                    kl_term=take("<f4", n * k).reshape(n, k),
                )
                if k
                else None,
                text=None if entry["text_bytes"] is None else take("u1", entry["text_bytes"]).tobytes(),
                truncated=entry["truncated"],
            )
        )
    return ScoreReply(
        items=items,
        tokenizer_sha256=header["tokenizer_sha256"],
        vocab_size=header["vocab_size"],
        weights_dtype=header["weights_dtype"],
        vocab_sizes=None if header["vocab_sizes"] is None else tuple(header["vocab_sizes"]),
        models=(Weights(**header["models"][0]), Weights(**header["models"][1])),
        pieces={int(token_id): piece for token_id, piece in header["pieces"].items()},
        spent=header["spent"],
    )
