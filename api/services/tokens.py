"""POST /v1/tokenize and /v1/detokenize: a model's tokenizer, which runs where the models are."""

from typing import Any

from anyio.to_thread import run_sync

from api.schemas_tokenize import DetokenizeRequest, TokenizeRequest
from api.schemas_tokens import Offsets
from api.services.models import ModelResolver
from api.services.token_columns import in_unit
from jobs import tokenizing_wire as wire
from jobs.errors import ScoringRefused
from jobs.ports import Scorer
from jobs.settings import Settings

Document = dict[str, Any]


class TokenService:
    """Texts to tokens and back."""

    def __init__(self, models: ModelResolver, scorer: Scorer, settings: Settings) -> None:
        self._models, self._scorer, self._settings = models, scorer, settings

    async def tokenize(self, request: TokenizeRequest, owner: str) -> Document:
        """The values of TokenizedList. Raises as ScoreService.score."""
        asked = {"texts": request.texts, "add_special_tokens": request.add_special_tokens}
        return await self._answer(request, asked, owner, kind="tokens", count=len(request.texts))

    async def detokenize(self, request: DetokenizeRequest, owner: str) -> Document:
        """The values of DetokenizedList. Raises as ScoreService.score."""
        lists = request.lists
        return await self._answer(request, {"token_ids": lists}, owner, kind="text", count=len(lists))

    async def _answer(
        self,
        request: TokenizeRequest | DetokenizeRequest,
        asked: dict[str, Any],
        owner: str,
        *,
        kind: str,
        count: int,
    ) -> Document:
        most = self._settings.max_items
        if count > most:
            detail = f"{count} items are more than the {most} of one answer"
            raise ScoringRefused("too_many_items", detail, {"limit": most, "actual": count})
        model = request.model or self._models.default_pair()[0]
        source = await run_sync(self._models.resolve, model, owner)
        reply = await self._scorer.tokenize(
            wire.TokenizeRequest(model=source, client=owner, **asked),
            timeout_s=self._settings.score_timeout_s,
        )
        return await run_sync(_document, model, reply, request.offsets, kind)


def _document(model: str, reply: wire.TokenizeReply, unit: Offsets, kind: str) -> Document:
    return {
        "object": "list",
        "model": {"id": model},
        "tokenizer": {"sha256": reply.tokenizer_sha256, "vocab_size": reply.vocab_size},
        "data": [_item(index, item, unit, kind) for index, item in enumerate(reply.items)],
        "usage": {"input_tokens": sum(len(item.token_ids) for item in reply.items)},
    }


def _item(index: int, item: wire.Tokenized, unit: Offsets, kind: str) -> Document:
    document: Document = {"object": kind, "index": index, "n_tokens": len(item.token_ids)}
    if kind == "text":
        document |= {"text": item.text.decode("utf-8", "replace"), "lossless": _is_utf8(item.text)}
    return document | {"tokens": _columns(item, unit)}


def _columns(item: wire.Tokenized, unit: Offsets) -> Document:
    spans = zip(item.start.tolist(), item.end.tolist(), strict=True)
    columns: Document = {
        "ids": item.token_ids,
        "text": [item.text[start:end].decode("utf-8", "replace") for start, end in spans],
        "special": item.special.tolist(),
    }
    if unit != "none":
        columns["start"], columns["end"] = in_unit(item.text, item.start, item.end, unit)
    return columns


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
