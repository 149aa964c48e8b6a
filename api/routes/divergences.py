"""/v1/divergences: how far apart two distributions are, without a model."""

from fastapi import Response

from api.json_response import json_response
from api.routing import BODY_PROBLEMS, v1_router
from api.schemas_scores import DistributionDivergence, DivergencesRequest, SampledDivergence
from api.services.divergences import diverge

router = v1_router("divergences")


@router.post(
    "/divergences",
    operation_id="divergences_create",
    summary="Compare two distributions, or log-probabilities of sampled tokens",
    response_model=DistributionDivergence | SampledDivergence,
    responses=BODY_PROBLEMS,
)
def create(request: DivergencesRequest) -> Response:
    """KL both ways, JS, TV and entropies of two distributions; or k1, k2, k3 of the tokens of a text."""
    return json_response(diverge(request))
