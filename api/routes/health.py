"""The probes: no key, no version prefix. Each answers under the names that Kubernetes' users try first, too."""

from fastapi import APIRouter, Response

from api.deps import PartsDep
from api.schemas import Health, Readiness, Version
from api.services.readiness import check
from api.version import API_VERSION, VERSION

router = APIRouter(tags=["probes"])


@router.get("/livez", include_in_schema=False)
@router.get("/healthz", include_in_schema=False)
@router.get("/health", operation_id="health", summary="Does the process live?")
async def health() -> Health:
    """Always 200."""
    return Health()


@router.get("/readyz", include_in_schema=False)
@router.get(
    "/ready",
    operation_id="ready",
    summary="Can it serve?",
    responses={503: {"model": Readiness, "description": "The database or the scorer is not ready"}},
)
def ready(parts: PartsDep, response: Response) -> Readiness:
    """503 until database and scorer answer. A broker that is down is shown, but jobs are still taken."""
    checks = check(parts.store, parts.broker, parts.scorer)
    serves = checks["database"] == checks["scorer"] == "ok"
    response.status_code = 200 if serves else 503
    return Readiness(status="ready" if serves else "not_ready", checks=checks)


@router.get("/version", operation_id="version", summary="Which software answers?")
async def version() -> Version:
    """The release, as in pyproject.toml, and the contract's."""
    return Version(version=VERSION, api_version=API_VERSION)
