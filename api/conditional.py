"""If-None-Match on documents that have no version of their own."""

import hashlib
from typing import Annotated

from fastapi import Header, Response
from pydantic import BaseModel

from api.entity_tags import matches

IfNoneMatch = Annotated[str | None, Header(description="An ETag of before.")]


def conditional(document: BaseModel, if_none_match: str | None, response: Response) -> Response:
    """The document with the hash of its bytes as ETag, or 304; the headers of `response` go with either.

    It saves the way, not the work; in return it is right whatever the document is made of.
    """
    body = document.model_dump_json().encode()
    response.headers["ETag"] = tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if if_none_match is not None and matches(if_none_match, tag):
        return Response(status_code=304, headers=response.headers)
    return Response(body, headers=response.headers, media_type="application/json")
