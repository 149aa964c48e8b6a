"""`kleash queue` and `kleash workers`: what waits, and for whom."""

from kleash.commands.options import Json, Key, Url
from kleash.commands.session import ask, show_fields, show_table


def queue(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show how many jobs wait, of everybody."""
    ask(lambda client: show_fields(client.queue(), as_json), url, key, as_json)


def workers(url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """List who runs jobs, and who has gone quiet."""
    columns = ("id", "state", "current_job", "device", "queues", "heartbeat_age_s")
    ask(lambda client: show_table(client.workers(), as_json, columns), url, key, as_json)
