"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Url = Annotated[str | None, typer.Option("--url", envvar="KLEASH_URL", help="The service's address.")]
Key = Annotated[str | None, typer.Option("--key", envvar="KLEASH_KEY", help="The API key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]
Data = Annotated[Path, typer.Option("--data", envvar="KLEASH_DATA", help="Where everything is kept.")]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models", envvar="KLEASH_MODELS_FILE", help="JSON of the models by name; DATA/models.json."
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID")]
Limit = Annotated[int, typer.Option(min=1, max=100)]
After = Annotated[str | None, typer.Option(help="`next_cursor` of the page before.")]
Repeat = Annotated[str | None, typer.Option("--idempotency-key", help="Makes a repeated call harmless.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write; standard output.")]
Pairs = Annotated[list[str] | None, typer.Option("--metadata", metavar="NAME=VALUE", help="May be repeated.")]
