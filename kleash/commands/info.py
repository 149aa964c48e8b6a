"""`kleash info`."""

from collections.abc import Iterator, Mapping
from typing import Any

from kleash.commands.options import Json, Key, Url
from kleash.commands.session import ask, show


def info(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show what the service allows: limits, quotas, the default pair."""
    ask(lambda client: _shown(client.info(), as_json), url, key, as_json)


def _shown(document: Mapping[str, Any], as_json: bool) -> int:
    from kleash import render

    return show(document, as_json, lambda: print("\n".join(render.fields(dict(_flat(document))))))


def _flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """`limits.top_k` for what stands a level deeper."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{part}", each) for part, each in value.items())
        else:
            yield name, value
