"""/v1/checkpoints: a save by its id, its files, and whether it is kept; and all that a job has to download."""

from typing import Annotated

from fastapi import Body, Request, Response

from api.auth import Owner
from api.deps import ArtifactsDep, CheckpointsDep
from api.downloads import answer
from api.examples import CHECKPOINT_CHANGES
from api.routing import (
    BODY_PROBLEMS,
    PARTS,
    TEXT,
    IfRange,
    KnownTag,
    Responses,
    WantedRange,
    problems,
    v1_router,
)
from api.schemas_checkpoints import ArtifactList, CheckpointChange, CheckpointDetail

router = v1_router("checkpoints", "jobs:read")
changing = v1_router("checkpoints", "jobs:write")

OCTETS = {"schema": {"type": "string", "format": "binary"}}
TAGS = {"ETag": TEXT, "Content-Length": TEXT}
FILE: Responses = PARTS | {
    200: {
        "content": {"application/octet-stream": OCTETS, "application/json": {}},
        "headers": TAGS | {"Repr-Digest": TEXT},
    }
}
TAR: Responses = PARTS | {200: {"content": {"application/x-tar": OCTETS}, "headers": TAGS}}


@router.get(
    "/jobs/{job_id}/artifacts",
    operation_id="jobs_artifacts",
    summary="List what can be downloaded of a job",
    responses=problems(404),
)
def artifacts(job_id: str, owner: Owner, service: ArtifactsDep) -> ArtifactList:
    """Its checkpoints, results and logs, with their sizes and where they are."""
    return ArtifactList.of(service.all(job_id, owner))


@router.get(
    "/checkpoints/{checkpoint_id}",
    operation_id="checkpoints_get",
    summary="Show a checkpoint",
    responses=problems(404),
)
def show(checkpoint_id: str, owner: Owner, checkpoints: CheckpointsDep) -> CheckpointDetail:
    """The save with its files, each with its size and sha256."""
    return CheckpointDetail.of_content(checkpoints.get(checkpoint_id, owner))


@changing.patch(
    "/checkpoints/{checkpoint_id}",
    operation_id="checkpoints_update",
    summary="Pin a checkpoint, or say when it may go",
    responses=problems(404, 409) | BODY_PROBLEMS,
)
def update(
    checkpoint_id: str,
    change: Annotated[CheckpointChange, Body(openapi_examples=CHECKPOINT_CHANGES)],
    owner: Owner,
    checkpoints: CheckpointsDep,
) -> CheckpointDetail:
    """Set what is named. A pinned one stays when the job drops its older saves, and when its time is over.

    One that another job needs cannot be unpinned.
    """
    return CheckpointDetail.of_content(checkpoints.change(checkpoint_id, owner, change.values()))


@changing.delete(
    "/checkpoints/{checkpoint_id}",
    operation_id="checkpoints_delete",
    summary="Delete a checkpoint",
    status_code=204,
    responses=problems(404, 409),
)
def delete(checkpoint_id: str, owner: Owner, checkpoints: CheckpointsDep) -> None:
    """A save of a job that has ended, pinned or not. One that another job needs stays; its files go soon after."""
    checkpoints.delete(checkpoint_id, owner)


@router.head(
    "/checkpoints/{checkpoint_id}/files/{name}",
    operation_id="checkpoints_file_head",
    summary="Ask for a file's size and digest",
    response_class=Response,
    responses=FILE | problems(404, 416),
)
@router.get(
    "/checkpoints/{checkpoint_id}/files/{name}",
    operation_id="checkpoints_file",
    summary="Download a file of a checkpoint",
    response_class=Response,
    responses=FILE | problems(404, 416),
)
def file(
    checkpoint_id: str,
    name: str,
    owner: Owner,
    checkpoints: CheckpointsDep,
    request: Request,
    if_none_match: KnownTag = None,
    wanted: WantedRange = None,
    if_range: IfRange = None,
) -> Response:
    """Its bytes, whole or one range of them. The tag and Repr-Digest are the sha256 of the whole file."""
    return answer(request, checkpoints.file(checkpoint_id, owner, name))


@router.head(
    "/checkpoints/{checkpoint_id}/archive",
    operation_id="checkpoints_archive_head",
    summary="Ask for the archive's size",
    response_class=Response,
    responses=TAR | problems(404, 416),
)
@router.get(
    "/checkpoints/{checkpoint_id}/archive",
    operation_id="checkpoints_archive",
    summary="Download a checkpoint as a tar",
    response_class=Response,
    responses=TAR | problems(404, 416),
)
def archive(
    checkpoint_id: str,
    owner: Owner,
    checkpoints: CheckpointsDep,
    request: Request,
    if_none_match: KnownTag = None,
    wanted: WantedRange = None,
    if_range: IfRange = None,
) -> Response:
    """All its files in one folder, the manifest with their sha256 first; a download can go on where it was cut."""
    return answer(request, checkpoints.archive(checkpoint_id, owner))
