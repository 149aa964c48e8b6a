"""/v1/tokenize and /v1/detokenize: what a model's tokenizer makes of texts and ids."""

from typing import Annotated

from fastapi import Body, Depends, Response

from api.auth import Owner
from api.deps import PartsDep
from api.examples import DETOKENIZE, TOKENIZE
from api.json_response import json_response
from api.routing import BODY_PROBLEMS, problems, v1_router
from api.schemas_tokenize import DetokenizedList, DetokenizeRequest, TokenizedList, TokenizeRequest
from api.services.tokens import TokenService

router = v1_router("scores", "score")


async def _service(parts: PartsDep) -> TokenService:
    return TokenService(parts.models, parts.scorer, parts.settings)


TokensDep = Annotated[TokenService, Depends(_service)]


@router.post(
    "/tokenize",
    operation_id="tokens_encode",
    summary="Texts to token ids",
    response_model=TokenizedList,
    responses=BODY_PROBLEMS | problems(504),
)
async def tokenize(
    request: Annotated[TokenizeRequest, Body(openapi_examples=TOKENIZE)], owner: Owner, tokens: TokensDep
) -> Response:
    """The ids that /v1/scores scores, with each token's text and its offsets. The model need not be in memory."""
    return json_response(await tokens.tokenize(request, owner))


@router.post(
    "/detokenize",
    operation_id="tokens_decode",
    summary="Token ids to texts",
    response_model=DetokenizedList,
    responses=BODY_PROBLEMS | problems(504),
)
async def detokenize(
    request: Annotated[DetokenizeRequest, Body(openapi_examples=DETOKENIZE)], owner: Owner, tokens: TokensDep
) -> Response:
    """The text that ids stand for, special tokens included, with each token's part of it."""
    return json_response(await tokens.detokenize(request, owner))
