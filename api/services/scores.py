"""POST /v1/scores: names to folders, texts to the scorer, arrays back to a document."""

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import uuid_utils

from api.schemas import rfc3339
from api.schemas_inputs import Completion, Conversation, Item, TokenIds, context_of
from api.schemas_scores import ScoresRequest
from api.schemas_statistics import SampledFrom
from api.schemas_tokens import Encoding
from api.services import attribution
from api.services.models import ModelResolver
from api.services.statistics import EXACT, NOTES, summarise
from api.services.token_columns import text_pieces, token_columns, top_columns
from jobs.errors import ScoringRefused
from jobs.ports import Scorer
from jobs.scoring_wire import ChatMessage, ItemError, ItemScores, ScoreItem, ScoreReply, ScoreRequest
from jobs.settings import Settings
from rlhf_core.statistics import sequence_sums


class ScoreService:
    """Scores texts under a pair of models."""

    def __init__(self, models: ModelResolver, scorer: Scorer, settings: Settings) -> None:
        self._models, self._scorer, self._settings = models, scorer, settings

    def score(self, request: ScoresRequest, owner: str) -> dict[str, Any]:
        """The answer's document, as values for JSON.

        Raises:
            UnknownModel, PathNotAllowed: a name that is no model.
            ScoringRefused: too many items, models that do not fit together, or no text that can be scored.
            ScorerUnavailable, ScorerOverloaded, DeadlineExceeded: the scorer gave no answer.
        """
        if len(request.items) > self._settings.max_items:
            raise ScoringRefused(
                "too_many_items", f"{len(request.items)} items are more than {self._settings.max_items}"
            )
        policy, reference = self._pair(request)
        wanted = list(dict.fromkeys(request.quantities))
        reply = self._scorer.score(
            ScoreRequest(
                policy=self._models.resolve(policy, owner),
                reference=self._models.resolve(reference, owner),
                items=[_wire_item(item, request) for item in request.items],
                temperature=request.temperature,
                quantities=tuple(dict.fromkeys([*wanted, *_also_needed(request)])),
                top_k=max(request.top_k, attribution.TOP_K if request.attribution else 0),
                numerics=request.numerics,
                client=owner,
            ),
            timeout_s=min(request.request_timeout_s or math.inf, self._settings.score_timeout_s),
        )
        failed = [answer for answer in reply.items if isinstance(answer, ItemError)]
        if len(failed) == len(reply.items):
            raise ScoringRefused(failed[0].code, failed[0].detail, failed[0].context)
        return {
            "object": "list",
            "id": f"score_{uuid_utils.uuid7().hex}",
            "created_at": rfc3339(time.time()),
            "policy": {"id": policy},
            "reference": {"id": reference},
            **_document(request, wanted, reply),
        }

    def _pair(self, request: ScoresRequest) -> tuple[str, str]:
        if request.policy is not None and request.reference is not None:
            return request.policy, request.reference
        policy, reference = self._models.default_pair()
        return request.policy or policy, request.reference or reference


def _wire_item(item: Item, request: ScoresRequest) -> ScoreItem:
    how: dict[str, Any] = {"add_special_tokens": request.add_special_tokens, "truncation": request.truncation}
    match item:
        case Completion():
            return ScoreItem(prompt=item.prompt, text=item.completion, **how)
        case TokenIds():
            return ScoreItem(token_ids=item.token_ids, score_from=item.score_from, **how)
        case Conversation():
            turns = [ChatMessage(role=turn.role, content=turn.content) for turn in item.messages]
            return ScoreItem(messages=turns, **how)
        case _:
            return ScoreItem(text=item, **how)


def _also_needed(request: ScoresRequest) -> list[str]:
    """What adjusted rewards, the summary and the attribution are computed from."""
    names = ["k1"] if request.beta is not None else []
    if len(request.items) > 1:
        names += ["k1", EXACT[request.sampled_from]]
    return [*names, *(attribution.QUANTITIES if request.attribution else ())]


def _document(request: ScoresRequest, wanted: Sequence[str], reply: ScoreReply) -> dict[str, Any]:
    scored = {i: answer for i, answer in enumerate(reply.items) if isinstance(answer, ItemScores)}
    contexts = {index: context_of(request.items[index]) for index in scored}
    clusters = [index if context is None else context for index, context in contexts.items()]
    return {
        "tokenizer": {"sha256": reply.tokenizer_sha256, "vocab_size": reply.vocab_size},
        "numerics": {
            "weights_dtype": reply.weights_dtype,
            "logits_dtype": "float32",
            "temperature": request.temperature,
            "unit": "nats",
            "mode": request.numerics,
            "batch_invariant": request.numerics == "strict",
        },
        "encoding": Encoding().model_dump() if request.encoding_format == "base64" else None,
        "partial": len(scored) < len(reply.items),
        "data": [
            _failure(index, answer)
            if isinstance(answer, ItemError)
            else _score(request, wanted, index, answer) | _columns(request, wanted, index, answer, reply)
            for index, answer in enumerate(reply.items)
        ],
        "summary": _summary(list(scored.values()), wanted, request.sampled_from, clusters)
        if len(scored) > 1
        else None,
        "attribution": _attribution(request, scored, clusters, reply.pieces) if request.attribution else None,
        "note": NOTES[request.sampled_from],
        "usage": {
            "input_tokens": sum(len(answer.token_ids) for answer in scored.values()),
            "scored_tokens": sum(int(answer.scored.sum()) for answer in scored.values()),
        },
    }


def _failure(index: int, answer: ItemError) -> dict[str, Any]:
    return {"object": "score", "index": index, "error": {"code": answer.code, "detail": answer.detail}}


def _score(request: ScoresRequest, wanted: Sequence[str], index: int, answer: ItemScores) -> dict[str, Any]:
    n_scored = int(answer.scored.sum())
    sums = {name: _sum(answer, name) for name in wanted}
    adjusted = None
    if request.rewards is not None and request.beta is not None:
        adjusted = request.rewards[index] - request.beta * _sum(answer, "k1")
    return {
        "object": "score",
        "index": index,
        "n_tokens": len(answer.token_ids),
        "n_scored": n_scored,
        "sampled_from": request.sampled_from,
        "sums": sums,
        "means": {name: value / n_scored for name, value in sums.items()},
        "adjusted_reward": adjusted,
    }


def _columns(
    request: ScoresRequest, wanted: Sequence[str], index: int, answer: ItemScores, reply: ScoreReply
) -> dict[str, Any]:
    encoding, tokens, top = request.encoding_format, None, None
    if request.per_token:
        item = request.items[index]
        tokens = token_columns(item, answer, wanted, offsets=request.offsets, encoding=encoding)
    if request.top_k and answer.top is not None:
        top = top_columns(answer.top, answer.scored, reply.pieces, k=request.top_k, encoding=encoding)
    return {"truncated": answer.truncated, "tokens": tokens, "top": top}


def _summary(
    answers: Sequence[ItemScores],
    wanted: Sequence[str],
    sampled_from: SampledFrom,
    clusters: Sequence[Hashable],
) -> dict[str, Any]:
    k1 = [answer.quantities["k1"][answer.scored].astype(np.float64) for answer in answers]
    exact = np.array([_sum(answer, EXACT[sampled_from]) for answer in answers])
    return summarise(
        {name: np.array([_sum(answer, name) for answer in answers]) for name in wanted},
        np.array([answer.scored.sum() for answer in answers], dtype=np.float64),
        sequence_sums(k1, exact, reference_wrote=sampled_from == "reference"),
        clusters=clusters,
        sampled_from=sampled_from,
    )


def _attribution(
    request: ScoresRequest,
    scored: Mapping[int, ItemScores],
    clusters: Sequence[Hashable],
    names: Mapping[int, str],
) -> dict[str, Any]:
    pieces = {index: text_pieces(request.items[index], answer) for index, answer in scored.items()}
    return attribution.attribute(scored, pieces, clusters, names=names)


def _sum(answer: ItemScores, name: str) -> float:
    return float(answer.quantities[name][answer.scored].sum(dtype=np.float64))
