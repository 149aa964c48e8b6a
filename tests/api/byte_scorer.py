"""A stand-in scorer's answers, one token per byte, and requests to /v1/scores."""

import json
from typing import Any

import numpy as np

from api.schemas_scores import ScoreList
from jobs.errors import ScoringRefused
from jobs.scoring_wire import (
    QUANTITIES,
    ItemError,
    ItemScores,
    ScoreItem,
    ScoreReply,
    ScoreRequest,
    decode_reply,
    encode_reply,
)
from jobs.tokenizing_wire import Tokenized, TokenizeReply, TokenizeRequest, decode_tokens, encode_tokens


def byte_scores(item: ScoreItem, *, k1: float, names: tuple[str, ...] = QUANTITIES) -> ItemScores:
    """One token per byte; every scored k1 is `k1`, the other quantities are 1."""
    raw = ((item.prompt or "") + item.text).encode()
    first = max(len((item.prompt or "").encode()), 1)
    scored = np.arange(len(raw)) >= first
    return ItemScores(
        token_ids=np.frombuffer(raw, np.uint8).astype(np.int32),
        start=np.arange(len(raw), dtype=np.int32),
        end=np.arange(1, len(raw) + 1, dtype=np.int32),
        scored=scored,
        quantities={
            name: np.where(scored, k1 if name == "k1" else 1.0, np.nan).astype(np.float32) for name in names
        },
    )


def byte_tokens(request: TokenizeRequest) -> TokenizeReply:
    """One token per byte; 0 is special."""
    if any(not 0 <= token_id < 256 for ids in request.token_ids or () for token_id in ids):
        raise ScoringRefused("token_id_out_of_range", "token ids are from 0 to 255")
    raws = [text.encode() for text in request.texts or ()] or [bytes(ids) for ids in request.token_ids or ()]
    items = [
        Tokenized(
            token_ids=(ids := np.frombuffer(raw, np.uint8).astype(np.int32)),
            start=np.arange(len(raw), dtype=np.int32),
            end=np.arange(1, len(raw) + 1, dtype=np.int32),
            special=ids == 0,
            text=raw,
        )
        for raw in raws
    ]
    reply = TokenizeReply(items=items, tokenizer_sha256="ab" * 32, vocab_size=256)
    return decode_tokens(encode_tokens(reply))


def replying(*k1: float):
    """A scorer's answer with one k1 per item, sent through the wire format."""

    def answer(request: ScoreRequest) -> ScoreReply:
        items = [
            byte_scores(item, k1=value, names=request.quantities)
            if item.text
            else ItemError(code="empty_input", detail="no token is left to score")
            for item, value in zip(request.items, k1, strict=True)
        ]
        reply = ScoreReply(items=items, tokenizer_sha256="ab" * 32, vocab_size=256, weights_dtype="float32")
        return decode_reply(encode_reply(reply))

    return answer


def post(client, body, status=200):
    response = client.post("/v1/scores", json=body)
    assert response.status_code == status, response.text
    if status == 200:
        ScoreList.model_validate_json(response.content, strict=True)  # what OpenAPI promises
    return response.json()


def byte_answer(request: ScoreRequest) -> ScoreReply:
    items: list[ItemScores | ItemError] = [
        byte_scores(item, k1=0.5, names=request.quantities)
        if item.text
        else ItemError(code="empty_input", detail="no token is left to score")
        for item in request.items
    ]
    return ScoreReply(items=items, tokenizer_sha256="ab" * 32, vocab_size=256, weights_dtype="float32")


def stream(client, body: dict[str, Any]) -> list[dict[str, Any]]:
    with client.stream("POST", "/v1/scores/stream", json=body) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "application/jsonl"
        return [json.loads(line) for line in response.iter_lines()]
