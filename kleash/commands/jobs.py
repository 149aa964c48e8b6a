"""`kleash jobs`: create, list, show, watch, wait, pause, resume, cancel, update, delete."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kleash.commands.options import After, JobId, Json, Key, Limit, Pairs, Repeat, Url
from kleash.commands.session import (
    FAILED,
    OK,
    USAGE,
    ask,
    fail,
    pairs,
    print_json,
    show,
    show_page,
)

if TYPE_CHECKING:
    from kleash.client import Client
    from kleash.documents import Job

app = typer.Typer(help="Create, follow and stop jobs; what they have produced.", no_args_is_help=True)

Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds; exit code 1 after them.")]

Why = Annotated[str | None, typer.Option("--reason", help="For people: the job shows it.")]


@app.command()
def create(
    spec: Annotated[typer.FileText, typer.Argument(metavar="FILE", help="The job as JSON; - is stdin.")],
    watch_it: Annotated[bool, typer.Option("--watch", help="Stay until it is done.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what it would be; create nothing.")
    ] = False,
    idempotency_key: Repeat = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Create a job from a JSON file."""
    from kleash import render

    try:
        body = json.load(spec)
    except (ValueError, RecursionError) as error:
        fail(USAGE, "malformed_json", f"{spec.name} is not JSON: {error}", as_json)

    def work(client: "Client") -> int:
        if dry_run:
            found = client.jobs.dry_run(body)
            return show(found, as_json, lambda: print("\n".join(render.dry_run(found))))
        job = client.jobs.create(body, idempotency_key=idempotency_key)
        if watch_it:
            return _watch(client, job["id"], as_json)
        return show(job, as_json, lambda: print(render.visible(job["id"])))

    ask(work, url, key, as_json)


@app.command("list")
def list_jobs(
    status: Annotated[
        list[str] | None, typer.Option(help="Only jobs in this state; may be repeated.")
    ] = None,
    type: Annotated[str | None, typer.Option(help="ppo or score.")] = None,
    metadata: Pairs = None,
    limit: Limit = 20,
    after: After = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    from kleash import render

    filters: Any = {"status": status or None, "type": type, "metadata": pairs(metadata, as_json) or None}

    def work(client: "Client") -> int:
        page = client.jobs.list(**filters, limit=limit, after=after)
        return show_page(page, as_json, render.job_table)

    ask(work, url, key, as_json)


@app.command("show")
def show_job(
    job_id: JobId,
    resolved: Annotated[bool, typer.Option("--resolved", help="And its config with every default.")] = False,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show one job."""
    from kleash import render

    def work(client: "Client") -> int:
        job = client.jobs.get(job_id, include="resolved_config" if resolved else None)

        def view() -> None:
            print(f"{render.visible(job['id'])}  {render.job_view(job)}")
            if resolved:
                print(json.dumps(job["resolved_config"], indent=2))

        return show(job, as_json, view)

    ask(work, url, key, as_json)


@app.command()
def watch(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Follow a job until it is done, a line for each change; exit code 0 if it succeeded."""
    ask(lambda client: _watch(client, job_id, as_json), url, key, as_json)


@app.command()
def wait(
    job_id: JobId, timeout: Timeout = None, url: Url = None, key: Key = None, as_json: Json = False
) -> None:
    """Wait until a job is done, and show it; exit code 0 if it succeeded."""

    def work(client: "Client") -> int:
        if sys.stderr.isatty():
            job = _wait_with_bar(client, job_id, timeout)
        else:
            job = client.jobs.wait(job_id, timeout_s=timeout)
        _show_state(job, as_json)
        return OK if job["status"] == "succeeded" else FAILED

    ask(work, url, key, as_json)


@app.command()
def pause(job_id: JobId, reason: Why = None, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Ask a job to save and stop for now."""
    ask(lambda client: _show_state(client.jobs.pause(job_id, reason=reason), as_json), url, key, as_json)


@app.command()
def resume(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Let a paused job go on from its last checkpoint."""
    ask(lambda client: _show_state(client.jobs.resume(job_id), as_json), url, key, as_json)


@app.command()
def cancel(
    job_id: JobId,
    reason: Why = None,
    save_checkpoint: Annotated[
        bool | None, typer.Option("--save/--no-save", help="A last checkpoint, or killed at once.")
    ] = None,
    grace_period_s: Annotated[
        float | None, typer.Option("--grace", help="Seconds to save and stop before it is killed.")
    ] = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Ask a job to end."""
    how: Any = {"save_checkpoint": save_checkpoint, "grace_period_s": grace_period_s}

    def work(client: "Client") -> int:
        return _show_state(client.jobs.cancel(job_id, reason=reason, **how), as_json)

    ask(work, url, key, as_json)


@app.command()
def update(
    job_id: JobId,
    name: Annotated[str | None, typer.Option(help="A new name.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 9; higher goes first.")] = None,
    metadata: Pairs = None,
    url: Url = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Change a job's name, priority or metadata (NAME= removes a pair)."""
    merged = {name: value or None for name, value in pairs(metadata, as_json).items()}
    changes: Any = {"name": name, "priority": priority, "metadata": merged or None}
    changes = {field: value for field, value in changes.items() if value is not None}
    if not changes:
        fail(USAGE, "invalid_request", "say what to change: --name, --priority or --metadata", as_json)
    ask(lambda client: _show_state(client.jobs.update(job_id, **changes), as_json), url, key, as_json)


@app.command()
def delete(job_id: JobId, url: Url = None, key: Key = None, as_json: Json = False) -> None:
    """Delete a job that is done, with all it has left."""

    def work(client: "Client") -> int:
        client.jobs.delete(job_id)
        return show({"id": job_id, "deleted": True}, as_json, lambda: print(f"{job_id}  deleted"))

    ask(work, url, key, as_json)


def _watch(client: "Client", job_id: str, as_json: bool) -> int:
    from kleash import render

    status, line = "", ""
    told: set[str] = set()
    for job in client.jobs.watch(job_id):
        status = job["status"]
        if as_json:
            print_json(job)
            continue
        if (changed := render.job_line(job)) != line:
            line = changed
            print(line, flush=True)
        for finding in job.get("diagnosis") or ():
            if finding["rule"] not in told:
                told.add(finding["rule"])
                print(render.finding_line(finding), flush=True)
    return OK if status == "succeeded" else FAILED


def _wait_with_bar(client: "Client", job_id: str, timeout_s: float | None) -> "Job":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from kleash import render

    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("")
        for job in client.jobs.watch(job_id, timeout_s=timeout_s):
            line = "  ".join([render.visible(job["phase"] or job["status"]), *render.job_numbers(job)])
            progress = job["progress"]
            bar.update(task, description=line, total=progress["total_steps"], completed=progress["step"])
    return job


def _show_state(job: "Job", as_json: bool) -> int:
    """Where a job stands after a request."""
    from kleash.render import visible

    return show(job, as_json, lambda: print(visible(f"{job['id']}  {job['status']}")))
