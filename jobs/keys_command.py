"""`python -m jobs.keys create|list|revoke`: the operator's keys beside the server, in its database.

Whoever can read the database's URL may do this; the audit log shows it as done by `(operator)`.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime

import uuid_utils

from jobs.audit import AuditEntry
from jobs.errors import KeyNotFound
from jobs.keys import ALL_SCOPES, FIRST_OWNER, KEY_ID, OWNER, Grant, StoredKey, new_key, scopes_of
from jobs.settings import settings_or_exit
from jobs.sql_store import SqlStore, open_store
from jobs.system import SystemRng

OPERATOR = "(operator)"  # no owner of a key can be called so
DAY_S = 86_400.0
PAGE = 100


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options = _parser().parse_args(arguments)
    with closing(open_store(settings_or_exit())) as store:
        options.run(store, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.keys", description=__doc__)
    commands = parser.add_subparsers(required=True)
    create = commands.add_parser("create", help="make a key and print it, once")
    create.add_argument("--name", required=True, help="for people")
    create.add_argument("--owner", type=_owner, default=FIRST_OWNER, help="whose jobs it sees (%(default)s)")
    create.add_argument(
        "--scope",
        dest="scopes",
        action="append",
        choices=sorted(ALL_SCOPES),
        help="may be repeated; without it, all but admin",
    )
    create.add_argument("--expires-in-days", type=_days, metavar="N")
    create.set_defaults(run=_create)
    listing = commands.add_parser("list", help="all keys, newest first")
    listing.set_defaults(run=_list)
    revoke = commands.add_parser("revoke", help="end a key; the server notices within a second")
    revoke.add_argument("id", help="the 8 characters behind kl_")
    revoke.set_defaults(run=_revoke)
    return parser


def _owner(text: str) -> str:
    if not OWNER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"an owner is {OWNER.pattern}")
    return text


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days < 36_500:
        raise argparse.ArgumentTypeError("days are a number between 0 and 36500")
    return days


def _create(store: SqlStore, options: argparse.Namespace) -> None:
    key = new_key(SystemRng())
    grant = Grant(
        owner=options.owner,
        name=options.name,
        scopes=scopes_of(" ".join(options.scopes)) if options.scopes else ALL_SCOPES - {"admin"},
        expires_in_s=options.expires_in_days and options.expires_in_days * DAY_S,
    )
    store.create_key(key.id, key.secret_sha256, grant)
    store.record_audit(_entry("api_keys_create", key.id))
    sys.stdout.write(f"{key}\n")


def _list(store: SqlStore, _options: argparse.Namespace) -> None:
    sys.stdout.write(f"{'id':8}  {'owner':16}  {'name':16}  {'expires':16}  {'revoked':16}  scopes\n")
    after: str | None = None
    while page := store.list_keys(after=after, limit=PAGE):
        sys.stdout.writelines(_line(key) for key in page)
        after = page[-1].id


def _line(key: StoredKey) -> str:
    scopes = "all" if key.scopes == ALL_SCOPES else " ".join(sorted(key.scopes))
    dates = f"{_date(key.expires_at):16}  {_date(key.revoked_at):16}"
    return f"{key.id}  {key.owner:16}  {key.name:16}  {dates}  {scopes}\n"


def _date(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _revoke(store: SqlStore, options: argparse.Namespace) -> None:
    try:
        if not KEY_ID.fullmatch(options.id):
            raise KeyNotFound(options.id)
        store.revoke_key(options.id)
    except KeyNotFound:
        raise SystemExit("there is no such key") from None
    store.record_audit(_entry("api_keys_revoke", options.id))


def _entry(operation: str, key_id: str) -> AuditEntry:
    request_id = f"req_{uuid_utils.uuid7().hex}"
    return AuditEntry(
        owner=OPERATOR,
        key_id=None,
        operation=operation,
        resource_id=key_id,
        status=200,
        client=None,
        request_id=request_id,
    )
