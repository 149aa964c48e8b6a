"""/v1/info: what this deployment allows."""

from api.auth import CallerDep
from api.deps import PartsDep
from api.routing import v1_router
from api.schemas_info import InfoDocument

router = v1_router("info", None)


@router.get("/info", operation_id="info", summary="Show limits, quotas and the default pair")
async def info(parts: PartsDep, caller: CallerDep) -> InfoDocument:
    """The limits are those that are enforced. They change with the deployment's settings, at a restart."""
    return InfoDocument.of(parts.settings, caller)
