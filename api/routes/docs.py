"""/docs: a page of ours that shows the OpenAPI document. Nothing on it comes from another host."""

from pathlib import Path

from fastapi import APIRouter, Response

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
