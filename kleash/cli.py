"""The `kleash` command: a noun, a verb.

Exit codes: 0 done, 1 a job (or the stack) failed, 2 the request is wrong, 3 no service answers,
4 the key is wrong, 130 Ctrl-C.
"""

import sys
from typing import Annotated

import typer

from kleash.commands import checkpoints, files, job_data, jobs, keys, models, webhooks
from kleash.commands.doctor import doctor, own_version
from kleash.commands.info import info
from kleash.commands.score import score
from kleash.commands.session import INTERRUPTED
from kleash.commands.stack import demo, up
from kleash.commands.tokens import detokenize, divergences, tokenize
from kleash.commands.workers import queue, workers

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kleash {own_version()}")
        raise typer.Exit


@app.callback()
def kleash(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """How far has a language model drifted from its reference? KL scores and PPO on a leash."""


for command in (up, demo, doctor, info, score, divergences, tokenize, detokenize, queue, workers):
    app.command()(command)
jobs.app.add_typer(job_data.app)  # without a name: one noun
app.add_typer(jobs.app, name="jobs")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(files.app, name="files")
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(webhooks.app, name="webhooks")


def main() -> None:
    """The entry point: output never fails on a character that the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app(prog_name="kleash")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
