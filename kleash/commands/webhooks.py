"""`kleash webhooks`: where messages about jobs go."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.commands.options import After, Json, Key, Limit, Repeat, Url
from kleash.commands.session import USAGE, ask, fail, show, show_fields, show_table

if TYPE_CHECKING:
    from kleash.client import Client

app = typer.Typer(help="Have messages about jobs sent to a URL.", no_args_is_help=True)

HookId = Annotated[str, typer.Argument(metavar="WEBHOOK_ID")]
Target = Annotated[str, typer.Argument(metavar="URL", help="Where to send to.")]
Events = Annotated[list[str] | None, typer.Option("--event", help="A type, as job.failed; may be repeated.")]


@app.command()
def create(
    target: Target,
    event: Events = None,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    idempotency_key: Repeat = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a webhook and print the secret that its messages are signed with: it is shown this once."""
    from kleash.render import visible

    def work(client: "Client") -> int:
        made = client.webhooks.create(
            target, event_types=event, description=description, idempotency_key=idempotency_key
        )

        def in_words() -> None:
            print(visible(made["secret"]))
            print(f"id {visible(made['id'])}; the secret is not shown again", file=sys.stderr)

        return show(made, as_json, in_words)

    ask(work, url, key, as_json)


@app.command("list")
def list_webhooks(
    limit: Limit = 20, after: After = None, url: Url = None, key: Key = None, as_json: Json = False
) -> None:
    """List webhooks, newest first."""
    columns = ("id", "url", "event_types", "enabled", "disabled_reason", "description")
    ask(
        lambda client: show_table(client.webhooks.list(limit=limit, after=after), as_json, columns),
        url,
        key,
        as_json,
    )


@app.command("show")
def show_webhook(webhook_id: HookId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show one webhook."""
    ask(lambda client: show_fields(client.webhooks.get(webhook_id), as_json), url, key, as_json)


@app.command()
def update(
    webhook_id: HookId,
    target: Annotated[str | None, typer.Option("--target", help="Where to send to.")] = None,
    event: Events = None,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Send, or rest.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Change a webhook, or let it rest."""
    fields = {"url": target, "event_types": event, "description": description, "enabled": enabled}
    changes: Any = {name: value for name, value in fields.items() if value is not None}
    if not changes:
        fail(USAGE, "invalid_request", "say what to change", as_json)
    ask(lambda client: show_fields(client.webhooks.update(webhook_id, **changes), as_json), url, key, as_json)


@app.command()
def delete(webhook_id: HookId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Send nothing any more."""

    def work(client: "Client") -> int:
        client.webhooks.delete(webhook_id)
        return show({"id": webhook_id, "deleted": True}, as_json, lambda: print(f"{webhook_id}  deleted"))

    ask(work, url, key, as_json)


@app.command("test")
def send_test(webhook_id: HookId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Send a message that says nothing."""
    ask(lambda client: show_fields(client.webhooks.test(webhook_id), as_json), url, key, as_json)


@app.command()
def rotate(webhook_id: HookId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Make a new secret; both sign for a day."""
    ask(lambda client: show_fields(client.webhooks.rotate(webhook_id), as_json), url, key, as_json)


@app.command()
def deliveries(
    webhook_id: HookId,
    limit: Limit = 20,
    after: After = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """A webhook's messages, newest first, and what came of each."""
    columns = ("id", "type", "status", "attempts", "http_status", "error", "created_at")
    ask(
        lambda client: show_table(
            client.webhooks.deliveries(webhook_id, limit=limit, after=after), as_json, columns
        ),
        url,
        key,
        as_json,
    )


@app.command()
def redeliver(
    webhook_id: HookId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY_ID")],
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Send a message once more."""
    ask(
        lambda client: show_fields(client.webhooks.redeliver(webhook_id, delivery_id), as_json),
        url,
        key,
        as_json,
    )
