"""The `kleash` command.

Exit codes: 0 done, 1 a job (or the stack) failed, 2 the request is wrong, 3 no service answers,
4 the key is wrong, 130 Ctrl-C.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kleash import render
from kleash.client import NEVER_SENT, Client, Document, KleashError

JOB_FAILED, USAGE, UNREACHABLE, NO_ENTRY, INTERRUPTED = 1, 2, 3, 4, 130

app = typer.Typer(
    help="How far has a language model drifted from its reference? KL scores and PPO on a leash.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
jobs = typer.Typer(help="Create, list, show, watch, pause, resume and cancel jobs.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")

Url = Annotated[str | None, typer.Option("--url", envvar="KLEASH_URL", help="The service's address.")]
Key = Annotated[str | None, typer.Option("--key", envvar="KLEASH_KEY", help="The API key.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document a line.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID")]
Data = Annotated[Path, typer.Option("--data", envvar="KLEASH_DATA", help="Where everything is kept.")]
Models = Annotated[
    Path | None,
    typer.Option(
        "--models", envvar="KLEASH_MODELS_FILE", help="JSON of the models by name; DATA/models.json."
    ),
]


@app.command()
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
        _fail(1, "cannot_run", str(error), as_json)


@app.command()
def demo(data: Data = Path(".kleash"), models: Models = None) -> None:
    """Score two sentences and train a small policy on a leash, start to end, over HTTP."""
    from kleash.demo import DemoError, run

    try:
        run(data, _registry(data, models))
    except DemoError as error:
        _fail(1, "demo_failed", str(error), as_json=False)


@app.command()
def score(
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT…", help="- reads standard input.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Context; only what follows it is scored.")] = None,
    policy: Annotated[str | None, typer.Option(help="A model's name, job_…@step-40, or a path.")] = None,
    reference: Annotated[str | None, typer.Option(help="As --policy.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Divides the logits of both.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show how far the policy is from the reference, token by token, in nats."""
    try:
        given = [sys.stdin.read() if text == "-" else text for text in texts or ["-"]]
    except UnicodeDecodeError as error:
        _fail(USAGE, "invalid_request", f"standard input is not text: {error}", as_json)
    items: list[Any] = given if prompt is None else [{"prompt": prompt, "completion": text} for text in given]

    def work(client: Client) -> int:
        answer = client.scores.create(items, policy=policy, reference=reference, temperature=temperature)
        if as_json:
            _print_json(answer)
        else:
            out = render.console()
            for item, text in zip(answer["data"], given, strict=True):
                out.print(render.score_view(item, (prompt or "") + text))
                out.print()
            out.print(render.legend())
        return USAGE if any(item.get("error") for item in answer["data"]) else 0

    _ask(work, url, key, as_json)


@jobs.command()
def create(
    spec: Annotated[typer.FileText, typer.Argument(metavar="FILE", help="The job as JSON; - is stdin.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay until it is done.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Makes a repeated call harmless.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Create a job from a JSON file."""
    try:
        body = json.load(spec)
    except (ValueError, RecursionError) as error:
        _fail(USAGE, "malformed_json", f"{spec.name} is not JSON: {error}", as_json)

    def work(client: Client) -> int:
        job = client.jobs.create(body, idempotency_key=idempotency_key)
        if watch_it:
            return _watch(client, job["id"], as_json)
        return _show(job, as_json, lambda: print(render.visible(job["id"])))

    _ask(work, url, key, as_json)


@jobs.command("list")
def list_jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    after: Annotated[str | None, typer.Option(help="`next_cursor` of the page before.")] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""

    def work(client: Client) -> int:
        page = client.jobs.list(status=status, limit=limit, after=after)
        return _show(page, as_json, lambda: render.console().print(render.job_table(page["data"])))

    _ask(work, url, key, as_json)


@jobs.command()
def show(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Show one job."""

    def work(client: Client) -> int:
        job = client.jobs.get(job_id)
        return _show(job, as_json, lambda: print(f"{render.visible(job['id'])}  {render.job_view(job)}"))

    _ask(work, url, key, as_json)


@jobs.command()
def watch(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Follow a job until it is done, a line for each change; exit code 0 if it succeeded."""
    _ask(lambda client: _watch(client, job_id, as_json), url, key, as_json)


@jobs.command()
def pause(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Ask a job to save and stop for now."""
    _ask(lambda client: _answer(client.jobs.pause(job_id), as_json), url, key, as_json)


@jobs.command()
def resume(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Let a paused job go on from its last checkpoint."""
    _ask(lambda client: _answer(client.jobs.resume(job_id), as_json), url, key, as_json)


@jobs.command()
def cancel(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Ask a job to end."""
    _ask(lambda client: _answer(client.jobs.cancel(job_id), as_json), url, key, as_json)


def main() -> None:
    """The entry point: output never fails on a character that the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        app(prog_name="kleash")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _registry(data: Path, models: Path | None) -> Path | None:
    prepared = data / "models.json"
    return models or (prepared if prepared.is_file() else None)


def _ask(work: Callable[[Client], int], url: str | None, key: str | None, as_json: bool) -> None:
    """Run `work` with a client; its exit code, or that of the error, is the command's."""
    try:
        with Client(url, key) as client:
            code = work(client)
    except KleashError as error:
        _fail(_exit_code(error), error.code, str(error), as_json)
    raise typer.Exit(code)


def _exit_code(error: KleashError) -> int:
    if error.status in (401, 403):
        return NO_ENTRY
    return USAGE if 400 <= error.status < 500 or error.code in NEVER_SENT else UNREACHABLE


def _watch(client: Client, job_id: str, as_json: bool) -> int:
    job: Document = {}
    line = ""
    told: set[str] = set()
    for job in client.jobs.watch(job_id):
        if as_json:
            _print_json(job)
        elif (changed := render.job_line(job)) != line:
            line = changed
            print(line, flush=True)
        if not as_json:
            for finding in job.get("diagnosis") or ():
                if finding["rule"] not in told:
                    told.add(finding["rule"])
                    print(render.finding_line(finding), flush=True)
    return 0 if job["status"] == "succeeded" else JOB_FAILED


def _answer(job: Document, as_json: bool) -> int:
    """Where a job stands after a request."""
    return _show(job, as_json, lambda: print(render.visible(f"{job['id']}  {job['status']}")))


def _show(document: Document, as_json: bool, show_it: Callable[[], object]) -> int:
    if as_json:
        _print_json(document)
    else:
        show_it()
    return 0


def _print_json(document: Document) -> None:
    print(json.dumps(document), flush=True)  # ASCII: escapes whatever could steer a terminal


def _fail(exit_code: int, code: str, detail: str, as_json: bool) -> NoReturn:
    if as_json:
        print(json.dumps({"error": {"code": code, "detail": detail}}), file=sys.stderr)
    else:
        safe = "\n".join(render.visible(line) for line in detail.split("\n"))
        print(f"kleash: {safe}", file=sys.stderr)
    raise typer.Exit(exit_code)
