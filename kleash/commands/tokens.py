"""`kleash tokenize`, `kleash detokenize` and `kleash divergences`: what needs no score."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.commands.options import Json, Key, Url
from kleash.commands.session import USAGE, ask, fail, show, show_fields

if TYPE_CHECKING:
    from kleash.client import Client

Model = Annotated[str | None, typer.Option(help="Whose tokenizer; the default policy's.")]


def tokenize(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT…")],
    model: Model = None,
    special: Annotated[bool, typer.Option(help="What the tokenizer puts around a text.")] = True,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the token ids that scores are of, with the bytes that each stands for."""

    def work(client: "Client") -> int:
        found = client.tokenize(texts, model=model, add_special_tokens=special)
        return show(found, as_json, lambda: _print_tokens(found["data"]))

    ask(work, url, key, as_json)


def detokenize(
    ids: Annotated[list[int], typer.Argument(metavar="ID…", min=0)],
    model: Model = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Spell token ids."""
    from kleash.render import visible

    def work(client: "Client") -> int:
        found = client.detokenize(ids, model=model)
        return show(found, as_json, lambda: print(visible(found["data"][0]["text"])))

    ask(work, url, key, as_json)


def divergences(
    request: Annotated[
        typer.FileText, typer.Argument(metavar="FILE", help="The request as JSON; - is stdin.")
    ],
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """KL and its kin of two distributions, or of log-probabilities that you have."""
    try:
        body = json.load(request)
    except (ValueError, RecursionError) as error:
        fail(USAGE, "malformed_json", f"{request.name} is not JSON: {error}", as_json)
    ask(lambda client: show_fields(client.divergences(body), as_json), url, key, as_json)


def _print_tokens(texts: Sequence[Mapping[str, Any]]) -> None:
    from kleash import render

    out = render.console()
    for text in texts:
        columns = text["tokens"]
        names = ("ids", "text", "start", "end", "special")
        rows = zip(*(columns[name] for name in names), strict=True)
        out.print(render.table([dict(zip(names, row, strict=True)) for row in rows], names))
