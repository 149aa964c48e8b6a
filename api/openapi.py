"""The OpenAPI document: what FastAPI knows, and what only we know. `python -m api.openapi` prints it."""

import json
import sys
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from api.schemas import FieldError, Problem

TAGS = [  # in the order in which a newcomer needs them
    {"name": "scores", "description": "How far the policy is from its reference, token by token."},
    {"name": "divergences", "description": "The same for numbers that you have."},
    {"name": "models", "description": "The names that policy and reference may have."},
    {"name": "jobs", "description": "PPO runs and bulk scores: made, followed, stopped; what they produce."},
    {"name": "checkpoints", "description": "The saves of jobs; each is a model."},
    {"name": "files", "description": "Prompts, texts and items that are too many for a request."},
    {"name": "webhooks", "description": "Messages about jobs to a URL of yours."},
    {"name": "workers", "description": "What waits, and for whom."},
    {"name": "api-keys", "description": "Who may do what."},
    {"name": "probes", "description": "For those who keep the service running."},
]
INT64 = {"minimum": -(2**63), "maximum": 2**63 - 1}  # api/strict_json.py refuses what is beyond


def complete(app: FastAPI) -> None:
    """Make `app.openapi()` say everything: the schemas of problems, and the bounds of integers."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()  # FastAPI's own cache
        if Problem.__name__ not in document["components"]["schemas"]:
            _add_problems(document)
            for node in _nodes(document):
                if "$ref" in node:
                    node.pop("type", None)  # FastAPI's guess for an answer that is not application/json
                if node.get("type") == "integer":
                    _bound(node)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _add_problems(document: dict[str, Any]) -> None:
    """The schemas that `routing.problems` refers to."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (FieldError, Problem):
        schema = model.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        schemas[model.__name__] = schema


def _bound(schema: dict[str, Any]) -> None:
    if "exclusiveMinimum" not in schema:
        schema.setdefault("minimum", INT64["minimum"])
    if "exclusiveMaximum" not in schema:
        schema.setdefault("maximum", INT64["maximum"])


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child)


def main() -> int:
    """Print the document, indented and with its names in their order."""
    from api.app import create_app  # which imports this module
    from jobs.settings import Settings

    json.dump(create_app(Settings()).openapi(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
