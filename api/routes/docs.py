"""/docs: a page of ours that shows the OpenAPI document, with nothing of another host; / leads there."""

from pathlib import Path

from fastapi import APIRouter, Request, Response
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


@router.get("/")
async def front(request: Request) -> Response:
    """Where to go on: a browser is taken to /docs."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("docs", 307, headers={"Vary": "Accept"})
    links = {"docs": "/docs", "openapi": "/openapi.json", "health": "/health", "ready": "/ready"}
    return JSONResponse({"name": "kleash", "version": VERSION, "links": links}, headers={"Vary": "Accept"})
