"""The audit log: who changed what and when, each row hashed together with the hash of the row before.

`python -m jobs.audit verify [--head SEQ:SHA256]` finds rows that were changed, removed or put elsewhere;
`python -m jobs.audit show [--after SEQ]` prints the rows, one JSON object a line.

The chain's end is kept in a row of its own, so that the last rows cannot be cut off unnoticed. Who can write both
tables can forge the whole chain: the end that `verify` prints, noted elsewhere, finds that too (`--head`).
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jobs.store_audit import AuditStore

GENESIS = "0" * 64


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One change that was asked for, and how it ended (`status`, HTTP's)."""

    owner: str
    key_id: str | None  # None: open mode, or the operator's command line
    operation: str  # the OpenAPI operation id
    resource_id: str | None
    status: int
    client: str | None  # the address of the peer; None: a unix socket, or no network at all
    request_id: str


class AuditHead(NamedTuple):
    """The last row of the chain."""

    seq: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.sha256}"


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """An entry in its place."""

    seq: int  # from 1, without gaps
    at: float  # by the database's clock
    entry: AuditEntry
    sha256: str


def chained_sha256(before: str, seq: int, at: float, entry: AuditEntry) -> str:
    """The hash of a row, which depends on all rows before it."""
    text = json.dumps([before, seq, at, asdict(entry)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def violations(store: "AuditStore", noted: AuditHead | None = None) -> Iterator[str]:
    """What is wrong with the log, also while it grows. `noted` is an end of the chain that was seen before."""
    last = AuditHead(0, GENESIS)
    found_noted = noted is None
    while True:
        head = store.audit_head()  # before the page, which therefore has all rows up to it
        page = store.list_audit(after=last.seq)
        for row in page:
            yield from _break(last, row)
            last = AuditHead(row.seq, row.sha256)
            found_noted |= last == noted
        if not page:
            break
    if head != last:
        yield f"the log ends with row {last.seq}, and should end with row {head.seq} ({head.sha256})"
    if not found_noted:
        yield f"no row is the one that was noted: {noted}"


def _break(before: AuditHead, row: AuditRow) -> Iterator[str]:
    if row.seq != before.seq + 1:
        yield f"rows {before.seq + 1} to {row.seq - 1} are missing"
    if row.sha256 != chained_sha256(before.sha256, row.seq, row.at, row.entry):
        yield f"row {row.seq} is not the one that was written"


def _head(text: str) -> AuditHead:
    seq, _, sha256 = text.partition(":")
    return AuditHead(int(seq), sha256)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if something is wrong with the log."""
    from jobs.settings import settings_or_exit
    from jobs.sql_store import open_store

    parser = argparse.ArgumentParser(prog="python -m jobs.audit", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="look for rows that were changed, removed or put elsewhere")
    verify.add_argument(
        "--head", type=_head, metavar="SEQ:SHA256", help="the end that an earlier run printed"
    )
    show = commands.add_parser("show", help="print the rows as JSON, one a line")
    show.add_argument("--after", type=int, default=0, metavar="SEQ", help="begin behind this row")
    options = parser.parse_args(arguments)
    with closing(open_store(settings_or_exit())) as store:
        if options.command == "show":
            _print_rows(store, options.after)
            return 0
        head = store.audit_head()
        found = list(violations(store, options.head))
    sys.stdout.writelines(f"VIOLATION {line}\n" for line in found)
    sys.stdout.write(f"{head.seq} rows, {len(found)} violations, head {head}\n")
    return 1 if found else 0


def _print_rows(store: "AuditStore", after: int) -> None:
    while page := store.list_audit(after=after):
        for row in page:
            fields = {"seq": row.seq, "at": row.at, **asdict(row.entry), "sha256": row.sha256}
            sys.stdout.write(json.dumps(fields) + "\n")
        after = page[-1].seq


if __name__ == "__main__":
    sys.exit(main())
