"""/v1/scores: how far a policy is from its reference on given texts."""

from typing import Annotated

from fastapi import Body, Depends, Response

from api.auth import Owner
from api.deps import PartsDep
from api.examples import SCORES
from api.json_response import json_response
from api.routing import BODY_PROBLEMS, problems, v1_router
from api.schemas_scores import ScoreList, ScoresRequest
from api.services.scores import ScoreService

router = v1_router("scores", "score")


async def _service(parts: PartsDep) -> ScoreService:
    return ScoreService(parts.models, parts.scorer, parts.settings)


@router.post(
    "/scores",
    operation_id="scores_create",
    summary="Score texts",
    response_model=ScoreList,
    responses=BODY_PROBLEMS | problems(504),
)
def create(
    request: Annotated[ScoresRequest, Body(openapi_examples=SCORES)],
    owner: Owner,
    scores: Annotated[ScoreService, Depends(_service)],
) -> Response:
    """Per token: both log-probabilities, k1, k3, exact KL(policy ‖ reference) and entropy, in nats."""
    return json_response(scores.score(request, owner))
