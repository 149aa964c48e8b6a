"""/v1/models: the names that requests may use, and which of them are in memory."""

from typing import Annotated

from fastapi import Path, Response

from api.auth import Owner
from api.deps import ResidenceDep
from api.routing import Responses, problems, v1_router
from api.schemas_models import ModelDocument, ModelList

router = v1_router("models", "models:read")
changing = v1_router("models", "models:write")

ModelId = Annotated[
    str, Path(description="A registered name, which may hold slashes, or a checkpoint `job_…@step-40`.")
]
ASKED: Responses = {202: {"model": ModelDocument, "description": "The scorers have yet to come to it"}}


@router.get("/models", operation_id="models_list", summary="List the registered models")
def index(residence: ResidenceDep) -> ModelList:
    """Besides these, a request may name a job's checkpoint or a path below the configured roots."""
    return ModelList.of(residence.listed())


@router.get(
    "/models/{model_id:path}", operation_id="models_get", summary="Show a model", responses=problems(404)
)
def show(model_id: ModelId, owner: Owner, residence: ResidenceDep) -> ModelDocument:
    """A registered model or a checkpoint, and whether the scorers have it in memory."""
    return ModelDocument.of(residence.get(model_id, owner))


@changing.post(
    "/models/{model_id:path}/load",
    operation_id="models_load",
    summary="Load a model into the scorers",
    responses=ASKED | problems(404),
)
def load(model_id: ModelId, owner: Owner, residence: ResidenceDep, response: Response) -> ModelDocument:
    """Before its first request instead of with it. 202 until it is there: poll the model.

    Where memory is short, the pair that was used least recently makes room.
    """
    placed = residence.load(model_id, owner)
    response.status_code = 202 if placed.state == "loading" else 200
    return ModelDocument.of(placed)


@changing.post(
    "/models/{model_id:path}/unload",
    operation_id="models_unload",
    summary="Have the scorers give up a model",
    responses=ASKED | problems(404),
)
def unload(model_id: ModelId, owner: Owner, residence: ResidenceDep, response: Response) -> ModelDocument:
    """And every pair that it is part of, between two batches; a request that needs it loads it again."""
    placed = residence.unload(model_id, owner)
    response.status_code = 202 if placed.loaded_on else 200
    return ModelDocument.of(placed)
