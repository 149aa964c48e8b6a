"""`kleash files`: prompts, texts and items, uploaded once and named by their id in jobs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.commands.options import After, Json, Key, Limit, Output, Repeat, Url
from kleash.commands.session import OK, USAGE, ask, fail, show, show_fields, show_table, written

if TYPE_CHECKING:
    from kleash.client import Client

app = typer.Typer(help="Upload prompts, texts and items for jobs.", no_args_is_help=True)

FileId = Annotated[str, typer.Argument(metavar="FILE_ID")]
Purpose = Annotated[str, typer.Option(help="What its lines are: prompts, texts or items.")]


@app.command()
def create(
    path: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="JSON lines.")],
    purpose: Purpose,
    name: Annotated[str | None, typer.Option(help="Any, for people; the file's own.")] = None,
    idempotency_key: Repeat = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Upload a file of JSON lines and print its id."""
    from kleash.render import visible

    def work(client: "Client") -> int:
        wanted: Any = purpose
        try:
            made = client.files.create(path, purpose=wanted, name=name, idempotency_key=idempotency_key)
        except OSError as error:
            fail(USAGE, "cannot_read", f"{path} cannot be read: {error.strerror}", as_json)
        return show(made, as_json, lambda: print(visible(made["id"])))

    ask(work, url, key, as_json)


@app.command("list")
def list_files(
    purpose: Annotated[str | None, typer.Option(help="Only of this purpose.")] = None,
    limit: Limit = 20,
    after: After = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List files, newest first."""
    wanted: Any = purpose
    columns = ("id", "purpose", "lines", "bytes", "created_at", "name")
    ask(
        lambda client: show_table(
            client.files.list(purpose=wanted, limit=limit, after=after), as_json, columns
        ),
        url,
        key,
        as_json,
    )


@app.command("show")
def show_file(file_id: FileId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show what is known of a file."""
    ask(lambda client: show_fields(client.files.get(file_id), as_json), url, key, as_json)


@app.command()
def download(
    file_id: FileId, output: Output = None, url: Url = None, key: Key = None, as_json: Json = False
) -> None:
    """The bytes as they were uploaded."""

    def work(client: "Client") -> int:
        with written(output, as_json) as write:
            for piece in client.files.content(file_id):
                write(piece)
        return OK

    ask(work, url, key, as_json)


@app.command()
def delete(file_id: FileId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Delete a file that no job needs any more."""

    def work(client: "Client") -> int:
        client.files.delete(file_id)
        return show({"id": file_id, "deleted": True}, as_json, lambda: print(f"{file_id}  deleted"))

    ask(work, url, key, as_json)
