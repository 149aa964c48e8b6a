"""Query strings: nothing in them that the operation does not know, and the parts that FastAPI has no type for."""

import re
from datetime import datetime
from difflib import get_close_matches
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BeforeValidator, WithJsonSchema

from api.errors import InvalidQuery

MAP = re.compile(r"(\w+)\[(.*)\]", re.DOTALL)  # metadata[team]=rl
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
NOT_A_TIME = "must be a time such as 2026-11-22T09:31:36Z (RFC 3339; a + is written %2B)"


def _seconds(text: object) -> float:
    if not isinstance(text, str) or not RFC3339.fullmatch(text):
        raise ValueError(NOT_A_TIME)
    try:
        return datetime.fromisoformat(text.upper()).timestamp()
    except ValueError:  # the 31st of February
        raise ValueError(NOT_A_TIME) from None


Instant = Annotated[
    float, BeforeValidator(_seconds), WithJsonSchema({"type": "string", "format": "date-time"})
]


def map_parameter(name: str, description: str, *, most: int) -> dict[str, Any]:
    """OpenAPI's way to say `name[key]=value`, up to so many times."""
    schema = {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "propertyNames": {"minLength": 1},
        "maxProperties": most,
    }
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "style": "deepObject",
        "explode": True,
        "schema": schema,
    }


def read_map(request: Request, name: str, *, most: int) -> dict[str, str]:
    """The pairs of `name[key]=value`.

    Raises:
        InvalidQuery: a key is empty or there twice, or there are too many.
    """
    found: dict[str, str] = {}
    for written, value in request.query_params.multi_items():
        match = MAP.fullmatch(written)
        if match is None or match[1] != name:
            continue
        if not match[2] or match[2] in found:
            raise InvalidQuery(f"{name}[key]=value needs a key, and each key once")
        found[match[2]] = value
    if len(found) > most:
        raise InvalidQuery(f"{name}[key]=value may be there {most} times")
    return found


async def only_known(request: Request) -> None:
    """A misspelt parameter must not change what is asked. Raises InvalidQuery."""
    if not request.query_params:
        return
    plain, maps = _known(request.app).get(request.scope["route"].operation_id, (frozenset(), frozenset()))
    for written in request.query_params:
        match = MAP.fullmatch(written)
        if written in plain or (match is not None and match[1] in maps):
            continue
        near = get_close_matches(written[:64], plain | maps, n=1)
        raise InvalidQuery("unknown query parameter" + (f"; did you mean {near[0]}?" if near else ""))


def _known(app: FastAPI) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
    """By operation id the names of its parameters, and those of its maps."""
    found: dict[str, tuple[frozenset[str], frozenset[str]]] = getattr(app.state, "query_names", {})
    if found:
        return found
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            queries = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
            maps = frozenset(each["name"] for each in queries if each.get("style") == "deepObject")
            plain = frozenset(each["name"] for each in queries) - maps
            found[operation["operationId"]] = (plain, maps)
    app.state.query_names = found
    return found
