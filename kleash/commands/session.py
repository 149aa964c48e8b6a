"""What every command does: a client, an answer in lines or as JSON, and an exit code."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:  # HTTP is imported when a command needs it: `--help` does not
    from rich.table import Table

    from kleash.client import Client
    from kleash.errors import KleashError

OK, FAILED, USAGE, UNREACHABLE, NO_ENTRY, INTERRUPTED = 0, 1, 2, 3, 4, 130
NOTHING: Mapping[str, Any] = {}
Work = Callable[["Client"], int]


def ask(work: Work, url: str | None, key: str | None, as_json: bool) -> None:
    """Run `work` with a client; its exit code, or that of the error, is the command's."""
    from kleash.client import Client
    from kleash.errors import KleashError

    try:
        with Client(url, key) as client:
            code = work(client)
    except KleashError as error:
        refused(error, as_json)
    except TimeoutError as error:
        fail(FAILED, "timeout", str(error), as_json)
    except BrokenPipeError:
        sys.stderr.close()  # or Python complains once more at its end
        code = FAILED
    raise typer.Exit(code)


def exit_code(error: "KleashError") -> int:
    """What of an error the shell should know."""
    from kleash.errors import NEVER_SENT

    if error.status in (401, 403):
        return NO_ENTRY
    return USAGE if 400 <= error.status < 500 or error.code in NEVER_SENT else UNREACHABLE


def show(document: Any, as_json: bool, in_words: Callable[[], object]) -> int:
    """The service's document, or what `in_words` prints of it."""
    if as_json:
        print_json(document)
    else:
        in_words()
    return OK


def show_each(documents: Iterable[Any], as_json: bool, in_words: Callable[[Any], str]) -> int:
    """One line, or more, for each document as it comes."""
    for document in documents:
        if as_json:
            print_json(document)
        else:
            print(in_words(document), flush=True)
    return OK


def show_table(page: Mapping[str, Any], as_json: bool, columns: Sequence[str]) -> int:
    """A page of a list, as a table of these fields."""
    from kleash import render

    return show_page(page, as_json, lambda rows: render.table(rows, columns))


def show_page(
    page: Mapping[str, Any], as_json: bool, table: Callable[[Sequence[Mapping[str, Any]]], "Table"]
) -> int:
    """A page of a list as `table` makes it of the rows, and how to ask for the next."""
    from kleash import render

    def in_words() -> None:
        render.console().print(table(page["data"]))
        if page.get("has_more"):
            print(f"more: --after {render.visible(str(page['next_cursor']))}", file=sys.stderr)

    return show(page, as_json, in_words)


def show_fields(document: Any, as_json: bool) -> int:
    """A document, a line for each of its fields."""
    from kleash import render

    return show(document, as_json, lambda: print("\n".join(render.fields(document))))


def print_json(document: Any) -> None:
    """One line, in ASCII: escapes whatever could steer a terminal."""
    print(json.dumps(document), flush=True)


def refused(error: "KleashError", as_json: bool) -> NoReturn:
    """Say what the service, or the way to it, has against the request, and exit."""
    more = {name: getattr(error, name) for name in ("status", "errors", "request_id", "retryable")}
    fail(exit_code(error), error.code, error.detail if as_json else str(error), as_json, more)


def fail(code: int, name: str, detail: str, as_json: bool, more: Mapping[str, Any] = NOTHING) -> NoReturn:
    """Say why on standard error, and exit."""
    if as_json:
        print(json.dumps({"error": {"code": name, "detail": detail, **more}}), file=sys.stderr)
    else:
        from kleash.render import visible_lines

        print(f"kleash: {visible_lines(detail)}", file=sys.stderr)
    raise typer.Exit(code)


def pairs(given: Sequence[str] | None, as_json: bool) -> dict[str, str]:
    """`name=value` words as a dictionary."""
    for pair in given or ():
        if "=" not in pair:
            fail(USAGE, "invalid_request", f"{pair} is not NAME=VALUE", as_json)
    return dict(pair.split("=", 1) for pair in given or ())


@contextmanager
def written(path: Path | None, as_json: bool) -> Iterator[Callable[[bytes], object]]:
    """Where bytes go: a file, which appears when it is whole, or standard output."""
    if path is None:
        if _at_terminal():
            fail(USAGE, "at_terminal", "bytes are not for a terminal: name a file with -o", as_json)
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file.write
        part.replace(path)
    except OSError as error:
        fail(USAGE, "cannot_write", f"{path} cannot be written: {error.strerror}", as_json)
    finally:
        part.unlink(missing_ok=True)


def _at_terminal() -> bool:
    return sys.stdout.isatty()
