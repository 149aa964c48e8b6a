"""/openapi.json, and /docs: a page of ours that shows it, with nothing of another host; / leads there."""

import asyncio
from pathlib import Path

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, RedirectResponse

from api.version import VERSION

STATIC = Path(__file__).parents[1] / "static"
FILES = {
    "/docs": ("docs.html", "text/html"),
    "/docs/page.css": ("docs.css", "text/css"),
    "/docs/page.js": ("docs.js", "text/javascript"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


def _serve(path: str, name: str, media_type: str) -> None:
    content = (STATIC / name).read_bytes()
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}

    @router.get(path, name=name)
    async def static_file() -> Response:
        return Response(content, media_type=media_type, headers=headers)


for _path, _file in FILES.items():
    _serve(_path, *_file)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The document, written once, beside what else is asked: it takes a second, and anybody may ask for it."""
    app = request.app
    if not hasattr(app.state, "openapi"):
        app.state.openapi = asyncio.ensure_future(run_in_threadpool(lambda: orjson.dumps(app.openapi())))
    if not app.state.openapi.done():
        await asyncio.wait([app.state.openapi])  # which outlives a client that leaves
    return Response(app.state.openapi.result(), media_type="application/json")


@router.get("/")
async def front(request: Request) -> Response:
    """Where to go on: a browser is taken to /docs."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("docs", 307, headers={"Vary": "Accept"})
    links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health", "ready": "/ready"}
    return JSONResponse({"name": "kleash", "version": VERSION, "links": links}, headers={"Vary": "Accept"})
