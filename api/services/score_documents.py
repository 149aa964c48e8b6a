"""From a scorer's arrays to the values of schemas_scores: each item, and what is said of them all."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from api.schemas_inputs import context_of
from api.schemas_scores import ScoresRequest
from api.schemas_tokens import Encoding
from api.services import attribution
from api.services.statistics import EXACT, NOTES, summarise
from api.services.token_columns import text_pieces, token_columns, top_columns
from jobs.scoring_wire import ItemError, ItemScores, ScoreReply
from rlhf_core.statistics import sequence_sums

Document = dict[str, Any]
NOTHING_SCORED = ItemError(code="empty_input", detail="no token of it was scored")


class Scored(NamedTuple):
    """What the summary needs of an item that was scored."""

    item: int
    cluster: Hashable
    n_tokens: int
    n_scored: int
    sums: dict[str, float]  # of all quantities that came
    k1: npt.NDArray[np.float64]  # of the scored tokens; none where it was not asked for


def scored(request: ScoresRequest, index: int, answer: ItemScores) -> Scored:
    """An item's sums."""
    context = context_of(request.items[index])
    values = {name: column[answer.scored].astype(np.float64) for name, column in answer.quantities.items()}
    return Scored(
        item=index,
        cluster=index if context is None else context,
        n_tokens=len(answer.token_ids),
        n_scored=int(answer.scored.sum()),
        sums={name: float(column.sum()) for name, column in values.items()},
        k1=values.get("k1", np.zeros(0)),
    )


def with_scored_tokens(reply: ScoreReply) -> ScoreReply:
    """The reply, where an item of which no token was scored is an error: it has no mean."""
    items = [
        item if isinstance(item, ItemError) or item.scored.any() else NOTHING_SCORED for item in reply.items
    ]
    return replace(reply, items=items)


def item_document(
    request: ScoresRequest, index: int, answer: ItemScores | ItemError, pieces: Mapping[int, str]
) -> tuple[Document, Scored | None]:
    """The values of Score or FailedScore; `pieces` spells the ids of the answer's top."""
    if isinstance(answer, ItemError):
        error = {"code": answer.code, "detail": answer.detail, "context": answer.context}
        return {"object": "score", "index": index, "error": error}, None
    found = scored(request, index, answer)
    return _score(request, found) | _columns(request, index, answer, pieces), found


def shared_document(request: ScoresRequest, reply: ScoreReply) -> Document:
    """What holds for all items: tokenizer, numerics, encoding, note."""
    ours, theirs = reply.vocab_sizes or (reply.vocab_size, reply.vocab_size)
    return {
        "tokenizer": {
            "sha256": reply.tokenizer_sha256,
            "shared": True,
            "vocab_size": reply.vocab_size,
            "policy_vocab_size": ours,
            "reference_vocab_size": theirs,
        },
        "numerics": {
            "weights_dtype": reply.weights_dtype,
            "logits_dtype": "float32",
            "temperature": request.temperature,
            "unit": "nats",
            "mode": request.numerics,
            "batch_invariant": request.numerics == "strict",
        },
        "encoding": Encoding().model_dump() if request.encoding_format == "base64" else None,
        "note": NOTES[request.sampled_from],
    }


def unknown_document(request: ScoresRequest) -> Document:
    """The same while the scorer has said nothing."""
    return {"tokenizer": None, "numerics": None, "encoding": None, "note": NOTES[request.sampled_from]}


def usage_document(items: Iterable[Scored]) -> Document:
    """The values of Usage."""
    counts = [(item.n_tokens, item.n_scored) for item in items]
    return {"input_tokens": sum(n for n, _ in counts), "scored_tokens": sum(n for _, n in counts)}


def summary_document(request: ScoresRequest, items: Sequence[Scored]) -> Document | None:
    """The values of Summary, or None for fewer than two items."""
    if len(items) < 2:
        return None
    exact = np.array([item.sums[EXACT[request.sampled_from]] for item in items])
    return summarise(
        {name: np.array([item.sums[name] for item in items]) for name in wanted(request)},
        np.array([item.n_scored for item in items], dtype=np.float64),
        sequence_sums(
            [item.k1 for item in items], exact, reference_wrote=request.sampled_from == "reference"
        ),
        clusters=[item.cluster for item in items],
        sampled_from=request.sampled_from,
    )


def attribution_document(request: ScoresRequest, reply: ScoreReply, items: Sequence[Scored]) -> Document:
    """The values of Attribution."""
    found = {item.item: item for item in items}
    answers = {i: answer for i, answer in enumerate(reply.items) if isinstance(answer, ItemScores)}
    texts = {index: text_pieces(request.items[index], answer) for index, answer in answers.items()}
    clusters = [found[index].cluster for index in answers]
    return attribution.attribute(answers, texts, clusters, names=reply.pieces)


def wanted(request: ScoresRequest) -> list[str]:
    """The quantities of the answer, each once."""
    return list(dict.fromkeys(request.quantities))


def needed(request: ScoresRequest) -> tuple[str, ...]:
    """Those, and what adjusted rewards, the top's rest, the summary and the attribution are computed from."""
    names = ["k1"] if request.beta is not None else []
    names += ["kl"] if request.top_k else []
    if len(request.items) > 1:
        names += ["k1", EXACT[request.sampled_from]]
    more = attribution.QUANTITIES if request.attribution else ()
    return tuple(dict.fromkeys([*request.quantities, *names, *more]))


def _score(request: ScoresRequest, item: Scored) -> Document:
    sums = {name: item.sums[name] for name in wanted(request)}
    adjusted = None
    if request.rewards is not None and request.beta is not None:
        adjusted = request.rewards[item.item] - request.beta * item.sums["k1"]
    finite = np.isfinite(list(sums.values())).all()
    return {
        "object": "score",
        "index": item.item,
        "n_tokens": item.n_tokens,
        "n_scored": item.n_scored,
        "sampled_from": request.sampled_from,
        "sums": sums,
        "means": {name: value / item.n_scored for name, value in sums.items()},
        "adjusted_reward": adjusted,
        "warnings": [] if finite else ["non_finite_logits"],
    }


def _columns(request: ScoresRequest, index: int, answer: ItemScores, pieces: Mapping[int, str]) -> Document:
    encoding, tokens, top = request.encoding_format, None, None
    if request.per_token:
        item, names = request.items[index], wanted(request)
        tokens = token_columns(item, answer, names, offsets=request.offsets, encoding=encoding)
    if request.top_k and answer.top is not None:
        kl = answer.quantities["kl"]
        top = top_columns(answer.top, kl, answer.scored, pieces, k=request.top_k, encoding=encoding)
    return {"truncated": answer.truncated, "tokens": tokens, "top": top}
