"""`kleash up` and `kleash demo`: the whole stack on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from kleash.commands.options import Data, Json, Models
from kleash.commands.session import FAILED, fail


def up(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8000,
    data: Data = Path(".kleash"),
    models: Models = None,
    unsafe_no_auth: Annotated[
        bool, typer.Option("--unsafe-no-auth", help="Ask for no key; refused off loopback.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole stack here, in the foreground, until Ctrl-C."""
    from kleash.claims import UpError
    from kleash.up import Options, run

    try:
        run(Options(host, port, data, _registry(data, models), unsafe_no_auth, as_json))
    except UpError as error:
        fail(FAILED, "cannot_run", str(error), as_json)


def demo(data: Data = Path(".kleash"), models: Models = None) -> None:
    """Score two sentences and train a small policy on a leash, start to end, over HTTP."""
    from kleash.demo import DemoError, run

    try:
        run(data, _registry(data, models))
    except DemoError as error:
        fail(FAILED, "demo_failed", str(error), as_json=False)


def _registry(data: Path, models: Path | None) -> Path | None:
    prepared = data / "models.json"
    return models or (prepared if prepared.is_file() else None)
