"""POST /v1/scores: names to folders, texts to the scorer, arrays back to a document."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import uuid_utils
from anyio.to_thread import run_sync

from api.errors import UnsupportedOption
from api.schemas import rfc3339
from api.schemas_inputs import Completion, Conversation, Item, TokenIds
from api.schemas_scores import ScoresRequest
from api.services import attribution
from api.services.models import ModelResolver
from api.services.score_documents import (
    Document,
    attribution_document,
    item_document,
    needed,
    shared_document,
    summary_document,
    usage_document,
    with_scored_tokens,
)
from jobs.errors import ScoringRefused
from jobs.ports import Scorer
from jobs.scoring_wire import ChatMessage, ItemError, ScoreItem, ScoreReply, ScoreRequest, Weights
from jobs.settings import Settings

OTHER_WAYS = (
    "POST /v1/scores/stream takes it in parts, and the header Prefer: respond-async makes a job of it"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request whose models were found: what the client said, and what the scorer is told."""

    request: ScoresRequest
    policy: str
    reference: str
    wire: ScoreRequest

    def head(self, models: tuple[Weights, Weights]) -> Document:
        """How every answer begins, but for its `object`; `models` as in ScoreReply."""
        policy, reference = models
        return {
            "id": f"score_{uuid_utils.uuid7().hex}",
            "created_at": rfc3339(time.time()),
            "metadata": self.request.metadata,
            "policy": {"id": self.policy, **asdict(policy)},
            "reference": {"id": self.reference, **asdict(reference)},
        }


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A request, its scores, and the seconds that went by."""

    asked: Asked
    reply: ScoreReply
    spent: dict[str, float]

    def document(self) -> Document:
        """The values of ScoreList."""
        request, reply = self.asked.request, self.reply
        told = [item_document(request, index, item, reply.pieces) for index, item in enumerate(reply.items)]
        items = [item for _, item in told if item is not None]
        return {
            "object": "list",
            **self.asked.head(reply.models),
            **shared_document(request, reply),
            "partial": len(items) < len(told),
            "data": [document for document, _ in told],
            "summary": summary_document(request, items),
            "attribution": attribution_document(request, reply, items) if request.attribution else None,
            "usage": usage_document(items),
        }


class ScoreService:
    """Scores texts under a pair of models."""

    def __init__(self, models: ModelResolver, scorer: Scorer, settings: Settings) -> None:
        self._models, self._scorer, self._settings = models, scorer, settings

    async def score(self, request: ScoresRequest, owner: str) -> Answered:
        """The answer; cancelling it gives the request up.

        Raises:
            UnknownModel, PathNotAllowed: a name that is no model.
            ScoringRefused: too many items, models that do not fit together, or no text that can be scored.
            ScorerUnavailable, ScorerOverloaded, DeadlineExceeded: the scorer gave no answer.
        """
        count, most = len(request.items), self._settings.max_items
        if count > most:
            detail = f"{count} items are more than the {most} of one answer; {OTHER_WAYS}"
            raise ScoringRefused("too_many_items", detail, {"limit": most, "actual": count})
        began = time.perf_counter()
        asked = await run_sync(self.resolve, request, owner)
        resolved = time.perf_counter()
        try:
            reply = with_scored_tokens(
                await self._scorer.score(asked.wire, timeout_s=self.patience_s(request))
            )
        except ScoringRefused as refusal:
            raise _with_other_ways(refusal, count) from None
        failed = [answer for answer in reply.items if isinstance(answer, ItemError)]
        if len(failed) == count:
            raise ScoringRefused(failed[0].code, failed[0].detail, failed[0].context)
        at_scorer = time.perf_counter() - resolved
        transfer = max(0.0, at_scorer - sum(reply.spent.values()))
        spent = {"resolve": resolved - began, **reply.spent, "transfer": transfer}
        return Answered(asked=asked, reply=reply, spent=spent)

    async def asked_as_stream(self, request: ScoresRequest, owner: str) -> Asked:
        """The request with its models found. Raises UnsupportedOption, UnknownModel, PathNotAllowed."""
        if request.attribution:
            raise UnsupportedOption("/attribution", "it is of all items together: ask POST /v1/scores for it")
        return await run_sync(self.resolve, request, owner)

    def patience_s(self, request: ScoresRequest) -> float:
        """How long one request to the scorer may take."""
        return min(request.request_timeout_s or math.inf, self._settings.score_timeout_s)

    def resolve(self, request: ScoresRequest, owner: str) -> Asked:
        """Names to folders. Raises UnknownModel, PathNotAllowed."""
        names = self._models.pair(request.policy, request.reference)
        wire = ScoreRequest(
            policy=self._models.resolve(names["policy"], owner),
            reference=self._models.resolve(names["reference"], owner),
            items=[wire_item(item, request) for item in request.items],
            temperature=request.temperature,
            quantities=needed(request),
            top_k=max(request.top_k, attribution.TOP_K if request.attribution else 0),
            numerics=request.numerics,
            vocab_mismatch=request.vocab_mismatch,
            client=owner,
        )
        return Asked(request=request, **names, wire=wire)


def wire_item(item: Item, request: ScoresRequest) -> ScoreItem:
    """An item as the scorer and score jobs read it."""
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


def _with_other_ways(refusal: ScoringRefused, items: int) -> ScoringRefused:
    """Of several items that are too long together, each may be short enough."""
    if refusal.code != "input_too_long" or items == 1:
        return refusal
    return ScoringRefused(refusal.code, f"{refusal.detail}; {OTHER_WAYS}", refusal.context)
