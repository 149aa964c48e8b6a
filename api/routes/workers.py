"""/v1/queue and /v1/workers: what waits, and for whom."""

from api.auth import Owner
from api.deps import PartsDep
from api.routing import v1_router
from api.schemas_workers import QueueDocument, WorkerList

router = v1_router("workers", "jobs:read")


@router.get("/queue", operation_id="queue_get", summary="Show how many jobs wait")
def queue(parts: PartsDep) -> QueueDocument:
    """Counts over the jobs of all callers, and no more of them than that."""
    return QueueDocument.of(parts.store.queue_state(), parts.store.list_workers())


@router.get("/workers", operation_id="workers_list", summary="List the workers")
def workers(parts: PartsDep, owner: Owner) -> WorkerList:
    """Who is there to take jobs. `current_job` is shown only to the job's owner."""
    return WorkerList.of(parts.store.list_workers(), owner)
