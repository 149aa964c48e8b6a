"""/v1/divergences: how far apart two distributions are, without a model."""

from typing import Annotated

from fastapi import Body, Response

from api.examples import DIVERGENCES
from api.json_response import json_response
from api.routing import BODY_PROBLEMS, v1_router
from api.schemas_divergences import (
    DistributionDivergence,
    DivergencesRequest,
    SampledDivergence,
    SequenceDivergences,
)
from api.services.divergences import diverge

router = v1_router("divergences", "score")


@router.post(
    "/divergences",
    operation_id="divergences_create",
    summary="Compare two distributions, or log-probabilities of sampled tokens",
    response_model=DistributionDivergence | SampledDivergence | SequenceDivergences,
    responses=BODY_PROBLEMS,
)
def create(request: Annotated[DivergencesRequest, Body(openapi_examples=DIVERGENCES)]) -> Response:
    """KL both ways, JS, TV and entropies of two distributions; or k1, k2, k3 of one text's tokens or several's."""
    return json_response(diverge(request))
