"""Where a request does not fit its schema, and why: said without repeating what the client wrote."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI

MAX_TEXT = 300


def field_error(entry: Mapping[str, Any], body: Any, names: frozenset[str]) -> dict[str, str]:
    """One pydantic error as `pointer, code, detail`: where and why, without the value."""
    where, *loc = entry["loc"]
    if where == "body":
        pointer = "".join(f"/{part}" for part in _document_path(loc, body, names))
    else:
        pointer = f"{where}:{'.'.join(str(part) for part in loc)}"
    reason = _reason(entry, names)[:MAX_TEXT]
    return {"pointer": pointer[:MAX_TEXT], "code": entry["type"], "detail": reason}


def _document_path(loc: Sequence[int | str], body: Any, names: frozenset[str]) -> Iterator[int | str]:
    """`loc` without union tags, up to the first name that only the client knows."""
    at = body
    for depth, part in enumerate(loc):
        if isinstance(at, dict) and part not in at and depth < len(loc) - 1:
            continue  # the tag of a union, which is no place in the document
        if isinstance(at, list) and isinstance(part, str):
            continue  # as above
        if isinstance(part, str) and part not in names:
            return
        if isinstance(at, dict):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        yield part


def _reason(entry: Mapping[str, Any], names: frozenset[str]) -> str:
    kind, context = entry["type"], entry.get("ctx", {})
    if kind == "missing" and tuple(entry["loc"]) == ("body",):
        return "a JSON body is required"
    if kind in ("model_type", "model_attributes_type"):
        return "must be a JSON object"
    if kind == "extra_forbidden":
        near = get_close_matches(str(entry["loc"][-1])[:64], names - {entry["loc"][-1]}, n=1)
        return "unknown field" + (f"; did you mean {near[0]}?" if near else "")
    if kind == "union_tag_invalid":  # pydantic's own message repeats the tag
        return f"{context['discriminator']} must be one of {context['expected_tags']}"
    if kind == "value_error":
        return str(context["error"])
    return str(entry["msg"])


def schema_names(app: FastAPI) -> frozenset[str]:
    """Every field and parameter that the OpenAPI document names: what an error may name too."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("properties"), dict):
                found.update(node["properties"])
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    cached: frozenset[str] | None = getattr(app.state, "schema_names", None)
    if cached is None:
        walk(app.openapi().get("components", {}))
        cached = app.state.schema_names = frozenset(found)
    return cached
