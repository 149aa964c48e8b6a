"""/v1/models: the names that requests may use."""

from api.deps import ModelsDep
from api.routing import v1_router
from api.schemas import ModelList

router = v1_router("models", "models:read")


@router.get("/models", operation_id="models_list", summary="List the registered models")
def index(models: ModelsDep) -> ModelList:
    """Besides these, a request may name a job's checkpoint or a path below the configured roots."""
    return ModelList.of(models.listed())
