"""/metrics: the service's own numbers, for Prometheus. A job's are at /v1/jobs/{job_id}/metrics."""

from fastapi import Response
from fastapi.responses import PlainTextResponse

from api.deps import PartsDep
from api.exposition import MEDIA_TYPE, exposition
from api.routing import v1_router
from api.services.readiness import check
from api.services.service_metrics import families

router = v1_router("probes", "jobs:read", prefix="")


@router.get(
    "/metrics",
    operation_id="service_metrics",
    summary="Show the service's numbers to Prometheus",
    response_class=PlainTextResponse,
)
def metrics(parts: PartsDep) -> Response:
    """Parts that answer, jobs, workers, and the requests of this process, in Prometheus' text format.

    Counts over the jobs of all callers, and no more of them than that.
    """
    found = families(parts.store, parts.requests, check(parts.store, parts.broker, parts.scorer))
    return Response(exposition(found), media_type=MEDIA_TYPE)
