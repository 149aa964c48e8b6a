"""/v1/files: prompts, texts and items, uploaded once and named by their id in jobs."""

from collections.abc import Iterator
from typing import Annotated
from urllib.parse import quote

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.auth import Owner
from api.deps import FilesDep
from api.entity_tags import matches
from api.errors import UnsupportedMediaType
from api.pages import MAX_PAGE, Limit, clamp, cursor, link_next
from api.routes.jobs import IdempotencyKey
from api.routing import BODY_PROBLEMS, DESCRIPTIONS, TEXT, Responses, problems, v1_router
from api.schemas_files import FileDocument, FileList
from api.services.files import FILE_ID, Arrival, Content
from jobs.lines import Purpose
from jobs.store_files import CreatedFile

router = v1_router("files", "files")

JSONL = "application/jsonl"
TAKEN = (JSONL, "application/x-ndjson")  # not text/plain: a page elsewhere could make a browser send that
WRITE_BYTES = 1 << 20
EXAMPLE = '{"prompt": "Once upon a time"}\n"A line may be a mere text."\n'
BODY = {
    "required": True,
    "description": "One JSON value a line, UTF-8. `prompts`: a string, or an object with a text `prompt`. "
    "`texts`: a string, or an object with a text `text`. `items`: a string, or {text}, {prompt, completion}, "
    "{token_ids}, {messages}, with `id` and `reward` if you like.",
    "content": {kind: {"schema": {"type": "string"}, "example": EXAMPLE} for kind in TAKEN},
}
REPLAYED = TEXT | {"description": "`true` if the key had made the file before."}
CREATED: Responses = {201: {"headers": {"Location": TEXT, "Idempotency-Replayed": REPLAYED}}}
CONTENT: Responses = {
    200: {
        "description": "The bytes as they were uploaded",
        "content": {JSONL: {"schema": {"type": "string"}}},
        "headers": {"ETag": TEXT | {"description": "The sha256."}},
    },
    304: {"description": DESCRIPTIONS[304]},
}
IfNoneMatch = Annotated[str | None, Header(description="An ETag of before.")]


@router.post(
    "/files",
    operation_id="files_create",
    summary="Upload a file",
    status_code=201,
    responses=CREATED | BODY_PROBLEMS | problems(409, 410, 429, 507),
    openapi_extra={"requestBody": BODY},
)
async def create(
    request: Request,
    owner: Owner,
    files: FilesDep,
    response: Response,
    name: Annotated[
        str,
        Query(
            min_length=1,
            max_length=255,
            pattern=r"^[^\x00-\x1f\x7f]+$",
            description="Any; for people.",
            examples=["prompts.jsonl"],
        ),
    ],
    purpose: Annotated[Purpose, Query(description="What its lines are, and where its id may stand.")],
    idempotency_key: IdempotencyKey = None,
) -> FileDocument:
    """Send the file itself as the body: `curl --data-binary @FILE -H 'Content-Type: application/jsonl'`.

    All lines are checked; 422 names the first that is bad, and nothing is kept.
    """
    _require_lines(request)
    declared = request.headers.get("content-length", "0")
    arrival = await run_in_threadpool(
        files.begin,
        owner,
        name=name,
        purpose=purpose,
        declared_bytes=int(declared[:20]) if declared.isdecimal() else 0,
    )
    created = await _received(request, arrival, idempotency_key)
    response.headers["Location"] = f"/v1/files/{created.file.id}"
    if created.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return FileDocument.of(created.file)


@router.get("/files", operation_id="files_list", summary="List files, newest first", responses=problems(400))
def index(
    request: Request,
    response: Response,
    owner: Owner,
    files: FilesDep,
    limit: Limit = 20,
    after: Annotated[str | None, cursor(FILE_ID)] = None,
    purpose: Purpose | None = None,
) -> FileList:
    """A page of the caller's files."""
    page = FileList.of(files.page(owner, purpose=purpose, after=after, limit=clamp(limit, MAX_PAGE)))
    link_next(request, response, page.next_cursor)
    return page


@router.get("/files/{file_id}", operation_id="files_get", summary="Show a file", responses=problems(404))
def show(file_id: str, owner: Owner, files: FilesDep) -> FileDocument:
    """What is known of the file."""
    return FileDocument.of(files.get(file_id, owner))


@router.get(
    "/files/{file_id}/content",
    operation_id="files_content",
    summary="Download a file",
    response_class=StreamingResponse,
    responses=CONTENT | problems(404),
)
def content(file_id: str, owner: Owner, files: FilesDep, if_none_match: IfNoneMatch = None) -> Response:
    """The bytes as they were uploaded; their sha256 is the ETag."""
    found = files.content(file_id, owner)
    return _answer(found, if_none_match, found.parts())


@router.head(
    "/files/{file_id}/content",
    operation_id="files_content_head",
    summary="Ask for a file's size and hash",
    response_class=Response,
    responses=CONTENT | problems(404),
)
def head(file_id: str, owner: Owner, files: FilesDep, if_none_match: IfNoneMatch = None) -> Response:
    """The headers of the download."""
    return _answer(files.content(file_id, owner), if_none_match, iter(()))


@router.delete(
    "/files/{file_id}",
    operation_id="files_delete",
    summary="Delete a file",
    status_code=204,
    responses=problems(404, 409),
)
def delete(file_id: str, owner: Owner, files: FilesDep) -> None:
    """409 while a job that is not done reads it."""
    files.delete(file_id, owner)


def _require_lines(request: Request) -> None:
    """Raises UnsupportedMediaType."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in TAKEN:
        raise UnsupportedMediaType("send Content-Type: application/jsonl (curl --data-binary @FILE -H …)")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body without Content-Encoding")


async def _received(request: Request, arrival: Arrival, idempotency_key: str | None) -> CreatedFile:
    """The file of a body, which goes to the disk as it comes; the event loop never waits for the disk."""
    waiting = bytearray()
    try:
        async for part in request.stream():
            waiting += part
            if len(waiting) >= WRITE_BYTES:
                await run_in_threadpool(arrival.take, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(arrival.take, bytes(waiting))
    except ClientDisconnect:
        arrival.abort()
        raise HTTPException(400, "the body ended too early") from None
    except BaseException:  # too large, or the server stops
        arrival.abort()
        raise
    return await run_in_threadpool(arrival.finish, idempotency_key)


def _answer(found: Content, if_none_match: str | None, parts: Iterator[bytes]) -> Response:
    headers = {"ETag": f'"{found.file.sha256}"'}
    if if_none_match is not None and matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    headers |= {
        "Content-Length": str(found.file.bytes),
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(found.file.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(parts, headers=headers, media_type=JSONL)
