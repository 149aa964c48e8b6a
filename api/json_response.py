"""A response from plain values and numpy arrays, written once and not validated again."""

from typing import Any

import orjson
from starlette.responses import Response


def json_response(document: dict[str, Any]) -> Response:
    """200 with the document as JSON; NaN and infinities become null."""
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")
