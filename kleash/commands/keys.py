"""`kleash keys`: API keys, for operators, and `whoami`, for everybody."""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kleash.commands.options import After, Json, Key, Limit, Repeat, Url
from kleash.commands.session import USAGE, ask, fail, show, show_fields, show_table

if TYPE_CHECKING:
    from kleash.client import Client

app = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID")]
SPAN = re.compile(r"(\d+)([smhd])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    scope: Annotated[list[str], typer.Option(help="What it may do, as jobs:read; may be repeated.")],
    owner: Annotated[str | None, typer.Option(help="Whose things it sees; those of your key.")] = None,
    expires_in: Annotated[str | None, typer.Option(metavar="SPAN", help="As 30d, 12h.")] = None,
    idempotency_key: Repeat = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: it is shown this once."""
    from kleash.render import visible

    span = SPAN.fullmatch(expires_in or "0s")
    if span is None:
        fail(USAGE, "invalid_request", f"{expires_in} is no span; write 30d, 12h, 90m or 60s", as_json)
    seconds = int(span[1]) * SECONDS[span[2]] or None

    def work(client: "Client") -> int:
        made = client.api_keys.create(
            name, scope, owner=owner, expires_in_s=seconds, idempotency_key=idempotency_key
        )

        def in_words() -> None:
            print(visible(made["key"] or ""))
            print(f"id {visible(made['id'])}; the key is not shown again", file=sys.stderr)

        return show(made, as_json, in_words)

    ask(work, url, key, as_json)


@app.command("list")
def list_keys(
    owner: Annotated[str | None, typer.Option(help="Only of this owner.")] = None,
    limit: Limit = 20,
    after: After = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List keys, newest first."""
    columns = ("id", "owner", "name", "scopes", "expires_at", "revoked_at", "last_used_at")
    ask(
        lambda client: show_table(
            client.api_keys.list(owner=owner, limit=limit, after=after), as_json, columns
        ),
        url,
        key,
        as_json,
    )


@app.command("show")
def show_key(key_id: KeyId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show what is known of a key."""
    ask(lambda client: show_fields(client.api_keys.get(key_id), as_json), url, key, as_json)


@app.command()
def revoke(key_id: KeyId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """End a key at once."""

    def work(client: "Client") -> int:
        client.api_keys.revoke(key_id)
        return show({"id": key_id, "revoked": True}, as_json, lambda: print(f"{key_id}  revoked"))

    ask(work, url, key, as_json)


@app.command()
def whoami(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Whose key this is, and what it may do."""
    ask(lambda client: show_fields(client.whoami(), as_json), url, key, as_json)
