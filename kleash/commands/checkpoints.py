"""`kleash checkpoints`: one save of a job, by its id. `kleash jobs checkpoints` lists them."""

from typing import TYPE_CHECKING, Annotated

import typer

from kleash.commands.options import Json, Key, Output, Url
from kleash.commands.session import OK, USAGE, ask, fail, show, show_fields, written

if TYPE_CHECKING:
    from kleash.client import Client

app = typer.Typer(help="Show, keep, download and delete the saves of jobs.", no_args_is_help=True)

CheckpointId = Annotated[str, typer.Argument(metavar="CHECKPOINT_ID")]


@app.command("show")
def show_checkpoint(
    checkpoint_id: CheckpointId, url: Url = None, key: Key = None, as_json: Json = False
) -> None:
    """Show a save and its files."""
    ask(lambda client: show_fields(client.checkpoints.get(checkpoint_id), as_json), url, key, as_json)


@app.command()
def pin(checkpoint_id: CheckpointId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Keep a save: `keep_last` will not drop it."""
    _pin(checkpoint_id, True, url, key, as_json)


@app.command()
def unpin(checkpoint_id: CheckpointId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Let `keep_last` drop a save."""
    _pin(checkpoint_id, False, url, key, as_json)


@app.command()
def expire(
    checkpoint_id: CheckpointId,
    at: Annotated[str | None, typer.Option(help="A time like 2027-01-31T12:00:00Z.")] = None,
    never: Annotated[bool, typer.Option("--never", help="It stays until it is deleted.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Have a save go by itself at a time, or when its job has ended; a pinned one stays."""
    if (at is None) is not never:
        fail(USAGE, "invalid_request", "give one of --at and --never", as_json)
    ask(
        lambda client: show_fields(client.checkpoints.update(checkpoint_id, expires_at=at), as_json),
        url,
        key,
        as_json,
    )


def _pin(checkpoint_id: str, pinned: bool, url: str | None, key: str | None, as_json: bool) -> None:
    ask(
        lambda client: show_fields(client.checkpoints.update(checkpoint_id, pinned=pinned), as_json),
        url,
        key,
        as_json,
    )


@app.command()
def download(
    checkpoint_id: CheckpointId,
    file: Annotated[str | None, typer.Option(help="One of its files, by the name that `show` has.")] = None,
    output: Output = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """All files of a save as one tar, or one of them as it is."""

    def work(client: "Client") -> int:
        if file is None:
            pieces = client.checkpoints.archive(checkpoint_id)
        else:
            pieces = client.checkpoints.file(checkpoint_id, file)
        with written(output, as_json) as write:
            for piece in pieces:
                write(piece)
        return OK

    ask(work, url, key, as_json)


@app.command()
def delete(checkpoint_id: CheckpointId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Delete a save of a job that is done."""

    def work(client: "Client") -> int:
        client.checkpoints.delete(checkpoint_id)
        deleted = {"id": checkpoint_id, "deleted": True}
        return show(deleted, as_json, lambda: print(f"{checkpoint_id}  deleted"))

    ask(work, url, key, as_json)
