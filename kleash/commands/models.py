"""`kleash models`: the names that policy and reference may have."""

from typing import Annotated

import typer

from kleash.commands.options import Json, Key, Url
from kleash.commands.session import ask, show_fields, show_table

app = typer.Typer(help="List models; load and unload them.", no_args_is_help=True)

ModelId = Annotated[str, typer.Argument(metavar="MODEL")]


@app.command("list")
def list_models(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """List models and their state in the scorers."""
    columns = ("id", "kind", "base", "default_for", "state", "error")
    ask(lambda client: show_table(client.models.list(), as_json, columns), url, key, as_json)


@app.command("show")
def show_model(model_id: ModelId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show one model."""
    ask(lambda client: show_fields(client.models.get(model_id), as_json), url, key, as_json)


@app.command()
def load(model_id: ModelId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Ask the scorers to load a model now."""
    ask(lambda client: show_fields(client.models.load(model_id), as_json), url, key, as_json)


@app.command()
def unload(model_id: ModelId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Ask the scorers to give a model up."""
    ask(lambda client: show_fields(client.models.unload(model_id), as_json), url, key, as_json)
